"""The rows of each cluster as Parquet files, one per source, that take a source's place in Axolotl's ``datasets:``."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from untax.data.corpus import Corpus, Source
from untax.data.first_turn import TURN_KEYS, first_turn, first_turns, has_turns
from untax.data.parallel import in_processes
from untax.data.row_digests import PARALLEL_ROWS
from untax.disperse.settings import DisperseSettings
from untax.errors import UntaxError
from untax.files import new_file

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

DIGEST_DIGITS = 12
GROUP_ROWS = 10_000
BUFFER_BYTES = 128 << 20
MOST_OPEN = 256
"""Files that a process writes at once; a system may allow 1,024 open ones."""


@dataclass(frozen=True)
class ClusterFile:
    """The rows of one source that are in one cluster.

    Attributes:
        name: the file's name; it holds the digests of the corpus and of the assignment.
        index: which of the corpus's sources.
        source: that source.
        cluster: which cluster.
        rows: positions within the source, ascending, uint32: for ten million rows every byte is ten megabytes.
        cut: whether the rows are written as their first turns.
    """

    name: str
    index: int
    source: Source
    cluster: int
    rows: np.ndarray
    cut: bool

    def write(self, folder: Path) -> None:
        """Write the file into ``folder``, in one step; ``write_clusters`` writes several at once."""
        write_clusters([self], folder)


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
            np.flatnonzero((of_source == cluster) & kept).astype(np.uint32),
            settings.first_turn and has_turns(source.entry),
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
            np.fromiter((first_turn(row) is not None for row in source), bool, count)
            if cut and has_turns(source.entry)
            else np.ones(count, bool)
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


def write_clusters(files: Sequence[ClusterFile], folder: Path, *, processes: int = 1) -> None:
    """Write files into ``folder``, each in one step; no source is ever held in memory.

    Args:
        files: of ``plan_clusters``.
        folder: made if missing.
        processes: how many may work at once, each on some of the clusters.

    Raises:
        UntaxError: the disk is full, the folder cannot be written to, or a process was killed.
    """
    rows = sum(len(file.rows) for file in files)
    parts = processes if rows >= PARALLEL_ROWS else 1
    tasks = [
        some
        for index in sorted({file.index for file in files})
        for some in _dealt([at for at, file in enumerate(files) if file.index == index], parts)
    ]
    try:
        for _ in in_processes(lambda some: _write([files[at] for at in some], folder), tasks, parts):
            pass
    except BaseException:
        # A process that was killed could not remove what it had begun.
        for file in files:
            for part in folder.glob(f".{file.name}.*.part"):
                part.unlink(missing_ok=True)
        raise


def _dealt(items: list[int], parts: int) -> list[list[int]]:
    parts = max(parts, -(-len(items) // MOST_OPEN))
    return [items[first::parts] for first in range(min(parts, len(items)))]


def _write(files: Sequence[ClusterFile], folder: Path) -> None:
    """Write files of one source at once."""
    source = files[0].source
    target: np.ndarray = np.full(len(source.rows), -1, np.int16 if len(files) < 1 << 15 else np.int32)
    for index, file in enumerate(files):
        target[file.rows] = index
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(_writer(file, folder, BUFFER_BYTES // len(files))) for file in files]
        start = 0
        for table in source.batches():
            for batch in table.to_batches():
                here = target[start : start + len(batch)]
                start += len(batch)
                for index in np.unique(here[here >= 0]).tolist():
                    writers[index].add(batch.take(np.flatnonzero(here == index)))


@contextlib.contextmanager
def _writer(file: ClusterFile, folder: Path, limit: int) -> Iterator[RowWriter]:
    import pyarrow.parquet as pq
    from datasets import Features, Value

    turn = Features({key: Value("string") for key in TURN_KEYS})
    schema = (turn if file.cut else file.source.rows.features).arrow_schema
    with new_file(folder / file.name) as part, pq.ParquetWriter(part, schema, write_page_index=True) as parquet:
        writer = RowWriter(parquet, schema, limit, cut=file.cut)
        yield writer
        writer.flush()


class RowWriter:
    """Batches of any size into row groups of one size, so that the file does not depend on how rows were batched.

    Args:
        parquet: where to.
        schema: of the file.
        limit: how many bytes may wait for their row group to be full.
        cut: whether rows are written as their first turns.
    """

    def __init__(self, parquet: pq.ParquetWriter, schema: pa.Schema, limit: int, *, cut: bool):
        self.parquet = parquet
        self.schema = schema
        self.limit = limit
        self.cut = cut
        self.waiting: list[pa.Table] = []

    def add(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        table = first_turns(batch) if self.cut else self._as_declared(batch)
        while len(table):
            free = GROUP_ROWS - sum(map(len, self.waiting))
            self.waiting.append(table.slice(0, free))
            if len(table) >= free or sum(waiting.nbytes for waiting in self.waiting) >= self.limit:
                self.flush()
            table = table.slice(free)

    def flush(self) -> None:
        """Write what waits as a row group."""
        import pyarrow as pa

        if self.waiting:
            # In one piece: where pages end depends on where chunks do.
            self.parquet.write_table(pa.concat_tables(self.waiting).combine_chunks(), GROUP_ROWS)
            self.waiting = []

    def _as_declared(self, batch: pa.RecordBatch) -> pa.Table:
        """With the metadata that tells `datasets` of features that Arrow does not know."""
        import pyarrow as pa
        from datasets.table import table_cast

        return table_cast(pa.Table.from_batches([batch]), self.schema)
