"""An assignment on disk: which row is in which cluster, and the clusters as Parquet files that Axolotl reads.

    <folder>/assignment.parquet   row, digest, cluster
    <folder>/clusters/*.parquet   one file per source and cluster; corpus and assignment digest in the name
    <folder>/untax.json           the manifest, written last

Axolotl's cache of tokenised data is keyed by paths and not by contents, so different rows need different names.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from untax.data.corpus import Corpus
from untax.disperse.clusters import write_clusters
from untax.disperse.settings import DisperseSettings
from untax.errors import UntaxError
from untax.files import new_file
from untax.manifest import changed_outputs, digest_bytes, read_manifest, write_manifest
from untax.plugins import named

FILE_NAME = "assignment.parquet"


@dataclass(frozen=True)
class Assignment:
    """A finished assignment.

    Attributes:
        path: the Parquet file.
        manifest: its manifest; section ``disperse`` has the corpus digest, the settings, the sizes and the files.
    """

    path: Path
    manifest: dict[str, Any]

    @property
    def section(self) -> dict[str, Any]:
        """The manifest's section ``disperse``."""
        return self.manifest["disperse"]

    def files(self, cluster: int) -> dict[int, Path]:
        """Source index -> Parquet file with the rows of ``cluster``; sources without such rows are absent."""
        return {int(source): self.path.parent / name for source, name in self.section["files"][cluster].items()}


def obtain(corpus: Corpus, settings: DisperseSettings, path: Path) -> Assignment:
    """Read the assignment at ``path``, or make it there if it does not exist yet.

    Many processes may call this at once: one makes it under a lock, which a dead process does not keep.

    Raises:
        UntaxError: it belongs to another corpus or other settings, or its files were changed.
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / ".assignment.lock"):
        if path.exists() and read_manifest(path.parent):
            return read(corpus, settings, path)
        return _make(corpus, settings, path)


def read(corpus: Corpus, settings: DisperseSettings, path: Path) -> Assignment:
    """The finished assignment at ``path``, checked against the corpus and the settings."""
    manifest = read_manifest(path.parent)
    if manifest is None or manifest.get("what") != "assignment" or path.name not in manifest["outputs"]:
        raise UntaxError("There is no finished assignment at this path.", where=f"disperse_assignment: {path}", fix="Name a folder of its own for the assignment.")
    _refuse_stale(manifest["disperse"], corpus, settings, path)
    changed = changed_outputs(path.parent, manifest)
    if changed:
        raise UntaxError(f"Files of this assignment were changed or cut: {', '.join(changed)}.", where=path.parent, fix="Remove the folder; it is made again from the corpus.")
    return Assignment(path, manifest)


def _refuse_stale(section: dict[str, Any], corpus: Corpus, settings: DisperseSettings, path: Path) -> None:
    if section["corpus"] != corpus.digest:
        raise UntaxError(
            f"The assignment was made for another corpus: {section['rows']} rows, digest {section['corpus']}; this one has {len(corpus)} rows, digest {corpus.digest}.",
            where=f"disperse_assignment: {path}",
            fix="Name a new path for the changed corpus, or remove the folder of the old assignment.",
        )
    differing = {key: (section[key], value) for key, value in settings.identity.items() if section[key] != value}
    if differing:
        listed = ", ".join(f"{key} {old!r} there, {new!r} here" for key, (old, new) in differing.items())
        raise UntaxError(f"The assignment was made with other settings: {listed}.", where=f"disperse_assignment: {path}", fix="Name another path, or correct the disperse keys.")


def _make(corpus: Corpus, settings: DisperseSettings, path: Path) -> Assignment:
    started = time.time()
    clusters = assign(corpus, settings)
    with new_file(path) as part:
        _write_rows(part, corpus.digests, clusters)
    digest = digest_bytes(path.read_bytes())
    files, sizes, skipped = write_clusters(corpus, clusters, path.parent / "clusters", settings, assignment_digest=digest)
    manifest = write_manifest(
        path.parent,
        what="assignment",
        outputs=[path.name, *(f"clusters/{name}" for names in files for name in names.values())],
        started=started,
        disperse={
            "corpus": corpus.digest,
            "rows": len(corpus),
            **settings.identity,
            "sizes": [sum(column) for column in zip(*sizes.values(), strict=True)],
            "sources": sizes,
            "rows_without_first_turn": skipped,
            "files": [{str(source): f"clusters/{name}" for source, name in names.items()} for names in files],
        },
    )
    return Assignment(path, manifest)


def assign(corpus: Corpus, settings: DisperseSettings) -> np.ndarray:
    """The cluster of every row by the settings' strategy, shape (N,), int32.

    Raises:
        UntaxError: more clusters than rows, an empty cluster, or a strategy that returns nonsense.
    """
    count = settings.clusters
    if count is None:
        return np.zeros(len(corpus), dtype=np.int32)
    distinct = len(set(corpus.digests))
    if count > distinct:
        raise UntaxError(f"{count} clusters cannot be filled by {distinct} different rows.", where="key disperse_clusters", fix=f"Use at most {distinct} clusters, or more data.")
    strategy = named("disperse_strategies", settings.strategy, where="key disperse_strategy")
    clusters = np.asarray(strategy(corpus, clusters=count, seed=settings.seed))
    if clusters.shape != (len(corpus),) or clusters.dtype.kind not in "iu" or clusters.min() < 0 or clusters.max() >= count:
        raise UntaxError(f"The strategy '{settings.strategy}' did not give every row one cluster of 0 to {count - 1}.", where="key disperse_strategy", fix="Report this to whoever wrote the strategy.")
    empty = np.flatnonzero(np.bincount(clusters, minlength=count) == 0)
    if len(empty):
        raise UntaxError(f"Cluster {empty[0]} of {count} holds no rows ({len(corpus)} rows in all).", where="key disperse_clusters", fix="Use fewer clusters or another disperse_seed.")
    return clusters.astype(np.int32)


def _write_rows(path: Path, digests: list[bytes], clusters: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "row": pa.array(np.arange(len(digests), dtype=np.int64)),
            "digest": pa.array([digest.hex() for digest in digests]),
            "cluster": pa.array(clusters),
        }
    )
    pq.write_table(table, path)
