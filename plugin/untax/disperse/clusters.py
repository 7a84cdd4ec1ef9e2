"""The rows of each cluster as Parquet files, one per source, that take a source's place in Axolotl's ``datasets:``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from untax.data.corpus import Corpus
from untax.data.first_turn import first_turn
from untax.disperse.settings import DisperseSettings
from untax.errors import UntaxError
from untax.files import new_file

if TYPE_CHECKING:
    from datasets import Dataset

DIGEST_DIGITS = 12


def write_clusters(
    corpus: Corpus, clusters: np.ndarray, folder: Path, settings: DisperseSettings, *, assignment_digest: str
) -> tuple[list[dict[int, str]], dict[str, list[int]], int]:
    """Write the rows of every cluster.

    Args:
        corpus: N rows.
        clusters: shape (N,), the cluster of each row.
        folder: where the files go.
        settings: the number of clusters, and whether rows are cut to their first turn.
        assignment_digest: becomes a part of each name.

    Returns:
        For each cluster {source index: file name}; {source name: rows per cluster} as written; and how many rows were
        left out because they have no complete first turn.
    """
    count = settings.clusters or 1
    names: list[dict[int, str]] = [{} for _ in range(count)]
    sizes: dict[str, list[int]] = {}
    start, skipped = 0, 0
    for index, source in enumerate(corpus.sources):
        of_source = clusters[start : start + len(source.rows)]
        start += len(source.rows)
        written = [0] * count
        for cluster in range(count):
            rows = source.rows.select(np.flatnonzero(of_source == cluster))
            name = _file_name(source.name, index, corpus.digest, assignment_digest, cluster, settings)
            written[cluster] = _write(folder / name, rows, cut=settings.first_turn)
            skipped += len(rows) - written[cluster]
            if written[cluster]:
                names[cluster][index] = name
        sizes[f"{index}:{source.name}"] = written
    _refuse_empty(names, settings)
    return names, sizes, skipped


def _refuse_empty(names: list[dict[int, str]], settings: DisperseSettings) -> None:
    for cluster, files in enumerate(names):
        if not files:
            raise UntaxError(
                f"No row of cluster {cluster} can be trained on" + (": none has a complete first turn." if settings.first_turn else "."),
                where="key disperse_first_turn" if settings.first_turn else "key disperse_clusters",
                fix="Rows need an instruction and an output, or messages with a user's and then an assistant's.",
            )


def _write(path: Path, rows: Dataset, *, cut: bool) -> int:
    """Write rows (cut to their first turns if ``cut``) and return how many; none, no file."""
    if cut:
        from datasets import Dataset

        rows = Dataset.from_list([turn for turn in map(first_turn, rows) if turn is not None])
    if len(rows):
        with new_file(path) as part:
            rows.to_parquet(part)
    return len(rows)


def _file_name(source: str, index: int, corpus: str, assignment: str, cluster: int, settings: DisperseSettings) -> str:
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(source).name.split(".")[0])[:40].strip("-") or "rows"
    part = f"cluster-{cluster}-of-{settings.clusters}" if settings.clusters else "all"
    return f"{stem}-{index}-{corpus[:DIGEST_DIGITS]}-{assignment[:DIGEST_DIGITS]}-{part}.parquet"
