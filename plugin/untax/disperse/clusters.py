"""The rows of each cluster as Parquet files, one per source, that take a source's place in Axolotl's ``datasets:``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from untax.data.corpus import Corpus, Source
from untax.data.first_turn import first_turn
from untax.disperse.settings import DisperseSettings
from untax.errors import UntaxError
from untax.files import new_file

DIGEST_DIGITS = 12


@dataclass(frozen=True)
class ClusterFile:
    """The rows of one source that are in one cluster.

    Attributes:
        name: the file's name; it holds the digests of the corpus and of the assignment.
        index: which of the corpus's sources.
        source: that source.
        cluster: which cluster.
        rows: positions within the source, ascending.
        cut: whether the rows are written as their first turns.
    """

    name: str
    index: int
    source: Source
    cluster: int
    rows: np.ndarray
    cut: bool

    def write(self, folder: Path) -> None:
        """Write the file into ``folder``, in one step."""
        rows = self.source.rows.select(self.rows)
        if self.cut:
            from datasets import Dataset

            rows = Dataset.from_list([turn for turn in map(first_turn, rows) if turn is not None])
        with new_file(folder / self.name) as part:
            rows.to_parquet(part)


def plan_clusters(
    corpus: Corpus, clusters: np.ndarray, settings: DisperseSettings, *, assignment_digest: str
) -> list[ClusterFile]:
    """Which files the clusters become, before any is written; sources without rows of a cluster get none.

    Args:
        corpus: N rows.
        clusters: shape (N,), the cluster of each row.
        settings: the number of clusters, and whether rows are cut to their first turn.
        assignment_digest: becomes a part of each name.

    Raises:
        UntaxError: a cluster holds no row that can be trained on.
    """
    files = [
        ClusterFile(
            _file_name(source.name, index, corpus.digest, assignment_digest, cluster, settings),
            index,
            source,
            cluster,
            np.flatnonzero((of_source == cluster) & kept),
            settings.first_turn,
        )
        for index, (source, of_source, kept) in enumerate(_by_source(corpus, clusters, cut=settings.first_turn))
        for cluster in range(settings.clusters or 1)
    ]
    filled = [file for file in files if len(file.rows)]
    _refuse_empty({file.cluster for file in filled}, settings)
    return filled


def _by_source(corpus: Corpus, clusters: np.ndarray, *, cut: bool) -> Iterator[tuple[Source, np.ndarray, np.ndarray]]:
    """Each source with its rows' clusters and whether each row is kept, both of shape (rows of the source,)."""
    start = 0
    for source in corpus.sources:
        count = len(source.rows)
        kept = (
            np.fromiter((first_turn(row) is not None for row in source), bool, count) if cut else np.ones(count, bool)
        )
        yield source, clusters[start : start + count], kept
        start += count


def _refuse_empty(filled: set[int], settings: DisperseSettings) -> None:
    empty = sorted(set(range(settings.clusters or 1)) - filled)
    if empty and settings.first_turn:
        raise UntaxError(
            f"Cluster {empty[0]} holds no row with a complete first turn.",
            where="key disperse_first_turn",
            fix="Rows need an instruction and an output, or messages with a user's and then an assistant's.",
        )
    if empty:
        raise UntaxError(
            f"Cluster {empty[0]} of {settings.clusters} holds no rows.",
            where="key disperse_clusters",
            fix="Use fewer clusters or another disperse_seed.",
        )


def _file_name(source: str, index: int, corpus: str, assignment: str, cluster: int, settings: DisperseSettings) -> str:
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(source).name.split(".")[0])[:40].strip("-") or "rows"
    part = f"cluster-{cluster}-of-{settings.clusters}" if settings.clusters else "all"
    return f"{stem}-{index}-{corpus[:DIGEST_DIGITS]}-{assignment[:DIGEST_DIGITS]}-{part}.parquet"
