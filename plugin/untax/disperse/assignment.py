"""An assignment on disk: which row is in which cluster, and the clusters as Parquet files that Axolotl reads.

    <folder>/assignment.parquet   row, digest, cluster
    <folder>/clusters/*.parquet   one file per source and cluster; corpus and assignment digest in the name
    <folder>/strategy.safetensors what the clusters follow from, where a strategy has such arrays (centroids)
    <folder>/untax.json           the manifest, written last

Axolotl's cache of tokenised data is keyed by paths and not by contents, so different rows need different names.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax.data.corpus import Corpus
from untax.data.text import CorpusTexts
from untax.disperse.clusters import ClusterFile, plan_clusters, write_clusters
from untax.disperse.rows import contents
from untax.disperse.settings import DisperseSettings
from untax.disperse.strategy import disperse
from untax.disperse.table import COLUMNS, read_arrays, read_clusters, save_arrays, write_table
from untax.errors import UntaxError
from untax.files import make_folder, new_file, plain_disk_errors
from untax.manifest import (
    MANIFEST_NAME,
    changed_outputs,
    digest_bytes,
    digest_file,
    digest_json,
    read_manifest,
    write_manifest,
)
from untax.training.inputs import entry_name

FILE_NAME = "assignment.parquet"
ARRAYS_NAME = "strategy.safetensors"
FOLDER_NAME = "clusters"
LOCK_NAME = ".assignment.lock"
PATIENCE_SECONDS = 3.0
"""How long to wait for another process without saying so."""
NEEDED = {"corpus", "rows", "clusters", "sizes", "sources", "rows_without_first_turn", "files"}
"""What every reader of a manifest's section ``disperse`` takes for granted."""
SAMPLED = 200

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Assignment:
    """A finished assignment.

    Attributes:
        path: the Parquet file.
        manifest: its manifest; section ``disperse`` has the corpus digest, the settings, the sizes and the files.
        made: whether this process made it, or found it.
    """

    path: Path
    manifest: dict[str, Any]
    made: bool = False

    @property
    def section(self) -> dict[str, Any]:
        """The manifest's section ``disperse``."""
        return self.manifest["disperse"]

    @property
    def digest(self) -> str:
        """SHA-256 of the Parquet file."""
        return self.manifest["outputs"][self.path.name]

    @property
    def clusters(self) -> np.ndarray:
        """The cluster of every row of the corpus, shape (N,), int32."""
        return read_clusters(self.path)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What the strategy saved beside the assignment, by name."""
        return read_arrays(self.path.parent / ARRAYS_NAME) if ARRAYS_NAME in self.manifest["outputs"] else {}

    def files(self, cluster: int) -> dict[int, Path]:
        """Source index -> Parquet file with the rows of ``cluster``; sources without such rows are absent."""
        return {int(source): self.path.parent / name for source, name in self.section["files"][cluster].items()}


def assignment_path(cfg: Mapping[str, Any], settings: DisperseSettings, corpus: Corpus) -> Path:
    """``disperse_assignment`` as a file; without it, one below ``dataset_prepared_path`` that is the corpus's own.

    A path without the suffix ``.parquet`` is the folder to put ``assignment.parquet`` in.
    """
    if settings.assignment:
        path = Path(settings.assignment)
        return path if path.suffix == ".parquet" else path / FILE_NAME
    own = digest_json([corpus.digest, _source_rows(corpus), settings.identity, _texts(corpus, settings)])[:16]
    return cache_folder(cfg) / own / FILE_NAME


def cache_folder(cfg: Mapping[str, Any]) -> Path:
    """Where what is costly and can be used again is kept: below ``dataset_prepared_path``."""
    return Path(cfg.get("dataset_prepared_path") or "last_run_prepared") / "untax"


def obtain(corpus: Corpus, settings: DisperseSettings, path: Path, cache: Path) -> Assignment:
    """Read the assignment at ``path``, or make it there if it does not exist yet.

    Many processes may call this at once: one makes it under a lock, which a dead process does not keep.

    Raises:
        UntaxError: it belongs to another corpus or other settings, its files were changed, or it cannot be made.
    """
    if is_finished(path):
        return _read(corpus, settings, path)
    with _locked(path.parent):
        if is_finished(path):
            return _read(corpus, settings, path)
        _refuse_foreign(path)
        return _make(corpus, settings, path, cache)


def is_finished(path: Path) -> bool:
    """Whether there is an assignment with its manifest, of whatever rows and settings."""
    return path.is_file() and read_manifest(path.parent) is not None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone in ``folder``; if the block fails, a folder that was made for it is removed again."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    make_folder(folder)
    lock = folder / LOCK_NAME
    with plain_disk_errors(lock), _acquired(lock):
        try:
            yield
        except BaseException:
            # While the lock is held: whoever waits for it finds it gone and makes its own.
            lock.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                for place in missing:
                    place.rmdir()
            raise


@contextlib.contextmanager
def _acquired(lock: Path) -> Iterator[None]:
    """The lock, which the kernel frees when its holder dies; whoever has to wait for it says so."""
    from filelock import FileLock, Timeout

    file_lock = FileLock(lock)
    try:
        file_lock.acquire(timeout=PATIENCE_SECONDS)
    except Timeout:
        print(f"untax: waiting for another process that makes the assignment in {lock.parent}", file=sys.stderr)
        file_lock.acquire()
    try:
        yield
    finally:
        file_lock.release()


def _refuse_foreign(path: Path) -> None:
    """Nothing that is not an unfinished assignment may be overwritten."""
    manifest = read_manifest(path.parent)
    own = manifest is None or (manifest.get("what") == "assignment" and path.name in manifest["outputs"])
    if not own or (path.exists() and not _is_assignment(path)):
        found = f"an artifact of another kind ({manifest.get('what')})" if manifest and not own else "another file"
        raise UntaxError(
            f"There is {found} where the assignment should be made.",
            where=f"disperse_assignment: {path}",
            fix="Name a path in a folder of its own, for example outputs/disperse/assignment.parquet.",
        )


def _is_assignment(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path).names == COLUMNS
    except (OSError, pa.ArrowException):
        return False


def _read(corpus: Corpus, settings: DisperseSettings, path: Path) -> Assignment:
    manifest = read_manifest(path.parent) or {}
    whole = manifest.get("what") == "assignment" and manifest.get("disperse", {}).keys() >= NEEDED
    if not whole or path.name not in manifest["outputs"]:
        raise UntaxError(
            f"This file is not the assignment that {MANIFEST_NAME} beside it describes.",
            where=f"disperse_assignment: {path}",
            fix="Name a path in a folder of its own, for example outputs/disperse/assignment.parquet.",
        )
    _refuse_stale(manifest["disperse"], corpus, settings, path)
    changed = changed_outputs(path.parent, manifest)
    if changed:
        raise UntaxError(
            f"Files of this assignment were changed, cut or removed: {', '.join(changed)}.",
            where=path.parent,
            fix="Remove the folder; it is made again from the corpus.",
        )
    return Assignment(path, manifest)


def _refuse_stale(section: dict[str, Any], corpus: Corpus, settings: DisperseSettings, path: Path) -> None:
    if section["corpus"] != corpus.digest:
        raise UntaxError(
            f"The assignment was made for another corpus: {section['rows']} rows, digest {section['corpus']}; "
            f"this one has {len(corpus)} rows, digest {corpus.digest}.",
            where=f"disperse_assignment: {path}",
            fix="Name a new path for the changed corpus, or remove the folder of the old assignment.",
        )
    divided, own = section.get("source_rows"), _source_rows(corpus)
    if divided not in (None, own):
        raise UntaxError(
            f"The assignment was made when the datasets had {_listed(divided)} rows; now they have {_listed(own)}. The "
            "rows are the same, but each cluster has a file for each dataset.",
            where=f"disperse_assignment: {path}",
            fix="Name a new path, or remove the folder of the old assignment.",
        )
    differing = settings.differences(section)
    if differing:
        shown = {key: ["not set" if one is None else repr(one) for one in pair] for key, pair in differing.items()}
        listed = ", ".join(f"{key} {old} there, {new} here" for key, (old, new) in shown.items())
        raise UntaxError(
            f"The assignment was made with other settings: {listed}.",
            where=f"disperse_assignment: {path}",
            fix="Name another path, or correct the disperse keys.",
        )
    if section.get("texts") not in (None, _texts(corpus, settings)):
        raise UntaxError(
            f"The assignment was made when the rows had another {settings.options['text']} text: the datasets' `type:` "
            "or the keys that name their columns changed.",
            where=f"disperse_assignment: {path}",
            fix="Name a new path, or remove the folder of the old assignment.",
        )


def _texts(corpus: Corpus, settings: DisperseSettings) -> str | None:
    """The digest of what a strategy that embeds reads of some rows; None for one that embeds nothing."""
    import numpy as np

    text = settings.options.get("text")
    if not settings.clusters or not text:
        return None
    rows = np.unique(np.linspace(0, len(corpus) - 1, SAMPLED).astype(np.int64))
    texts = CorpusTexts(corpus, text=text, first_turn=settings.first_turn).take(rows)
    return digest_bytes("\0".join(texts).encode("utf-8", "surrogatepass"))


def _source_rows(corpus: Corpus) -> list[int]:
    return [len(source.rows) for source in corpus.sources]


def _listed(numbers: list[int]) -> str:
    return " + ".join(map(str, numbers))


def _make(corpus: Corpus, settings: DisperseSettings, path: Path, cache: Path) -> Assignment:
    started = time.time()
    dispersal = disperse(corpus, settings, cache)
    arrays = path.parent / ARRAYS_NAME
    (path.parent / MANIFEST_NAME).unlink(missing_ok=True)
    _remove_parts(path)
    made: list[Path] = []
    try:
        with new_file(path) as part:
            write_table(part, corpus.digests, dispersal.clusters)
            files = plan_clusters(corpus, dispersal.clusters, settings, assignment_digest=digest_file(part))
            made += [path.parent / FOLDER_NAME / file.name for file in files]
            write_clusters(files, path.parent / FOLDER_NAME, processes=corpus.processes)
            if dispersal.arrays:
                made.append(arrays)
                save_arrays(arrays, dispersal.arrays)
        made.append(path)
        manifest = write_manifest(
            path.parent,
            what="assignment",
            outputs=[file.relative_to(path.parent).as_posix() for file in made],
            started=started,
            inputs={f"datasets/{entry_name(source.entry)}": source.digest for source in corpus.sources},
            disperse={
                "entries": corpus.entries,
                "corpus": corpus.digest,
                "rows": len(corpus),
                "source_rows": _source_rows(corpus),
                **settings.identity,
                **({"texts": texts} if (texts := _texts(corpus, settings)) else {}),
                **_summary(corpus, files),
                "contents": contents(corpus, files),
                "facts": dict(dispersal.facts),
            },
        )
    except BaseException:
        for file in made:
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (path.parent / FOLDER_NAME).rmdir()
        raise
    return Assignment(path, manifest, made=True)


def _remove_parts(path: Path) -> None:
    """What a killed process left half-written; whoever holds the lock is the only one who writes here."""
    for pattern in (f".{path.name}.*.part", f".{ARRAYS_NAME}.*.part", f"{FOLDER_NAME}/.*.part"):
        for part in path.parent.glob(pattern):
            part.unlink(missing_ok=True)


def _summary(corpus: Corpus, files: list[ClusterFile]) -> dict[str, Any]:
    """Rows per cluster as written, in all and by source, and the files by cluster and source."""
    count = max(file.cluster for file in files) + 1
    sources = {f"{index}:{source.name}": [0] * count for index, source in enumerate(corpus.sources)}
    names: list[dict[str, str]] = [{} for _ in range(count)]
    for file in files:
        sources[f"{file.index}:{file.source.name}"][file.cluster] = len(file.rows)
        names[file.cluster][str(file.index)] = f"{FOLDER_NAME}/{file.name}"
    sizes = [sum(column) for column in zip(*sources.values(), strict=True)]
    return {
        "sizes": sizes,
        "sources": sources,
        "rows_without_first_turn": len(corpus) - sum(sizes),
        "files": names,
    }
