"""The rows of a training corpus, read through Axolotl's own loaders."""

from __future__ import annotations

import dataclasses
import functools
import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax.data.digest import RowDigests, corpus_digest
from untax.data.stored import StoredRows, stored_rows
from untax.errors import UntaxError
from untax.manifest import digest_file, digest_files, digest_json

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


DATA_SUFFIXES = {".json", ".jsonl", ".parquet", ".arrow", ".csv", ".tsv", ".txt", ".gz", ".zst"}

# What says which rows of a dataset are read, besides its path.
ROW_KEYS = ("split", "name", "data_files", "ds_type", "shards", "shards_idx", "preprocess_shards", "revision")
BATCH_ROWS = 4000


@dataclass(frozen=True)
class Source:
    """One entry of Axolotl's ``datasets:`` with its rows.

    Attributes:
        entry: the entry.
        rows: what it names.
        digest: its ``identity``, taken before the rows were read.
    """

    entry: dict[str, Any]
    rows: Dataset
    digest: str = "unknown"

    @property
    def name(self) -> str:
        """The entry's path, for messages and tables."""
        return str(self.entry["path"])

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """The rows as Arrow holds them: images and sounds as bytes, not decoded."""
        for batch in self.batches():
            yield from batch.to_pylist()

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """The rows from ``start`` up to ``stop`` as Arrow holds them, up to some thousands at a time.

        They are read from the dataset's files where it is no more than those. It maps them into memory itself, and what
        was read of a mapped file counts as used memory.
        """
        stop = len(self.rows) if stop is None else stop
        if self._stored is not None:
            yield from self._stored.batches(start, stop, BATCH_ROWS)
            return
        rows = self.rows.with_format("arrow")
        for first in range(start, stop, BATCH_ROWS):
            yield rows[first : min(first + BATCH_ROWS, stop)]

    @functools.cached_property
    def _stored(self) -> StoredRows | None:
        return stored_rows(self.rows)


@dataclass(frozen=True)
class Corpus:
    """All rows of a corpus: those of its sources, one source after the other.

    Attributes:
        sources: one for each entry, and for each name of an entry that names several.
        entries: the ``entries_digest`` of the entries that it was read from.
        processes: how many processes may read its rows at once.
    """

    sources: tuple[Source, ...]
    entries: str = ""
    processes: int = 1

    def __len__(self) -> int:
        return sum(len(source.rows) for source in self.sources)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for source in self.sources:
            yield from source

    @functools.cached_property
    def digests(self) -> RowDigests:
        """The identity of each row, in order; 16 bytes each.

        Raises:
            UntaxError: a row holds a value that has no canonical form.
        """
        from untax.data.row_digests import row_digests

        return row_digests(self, self.processes)

    def with_digests(self, digests: RowDigests) -> Corpus:
        """The same rows with digests that are known already, and are not made again.

        Args:
            digests: those of all N rows.
        """
        known = dataclasses.replace(self)
        known.__dict__["digests"] = digests
        return known

    @functools.cached_property
    def digest(self) -> str:
        """The identity of the corpus: its rows in their order."""
        return corpus_digest(self.digests)


def read_corpus(cfg: Any, *, key: str = "datasets") -> Corpus:
    """Read the rows of ``cfg[key]`` as Axolotl would for training.

    Args:
        cfg: an Axolotl configuration (``DictDefault``), validated or straight from YAML.
        key: ``datasets`` or ``test_datasets``.

    Raises:
        UntaxError: the list is missing, a dataset cannot be read, or one has no rows.
    """
    from axolotl.utils.data.shared import datasets_with_name_generator
    from axolotl.utils.dict import DictDefault

    entries = cfg.get(key)
    check_entries(entries, key=key)
    configs = [DictDefault(entry) for entry in entries]
    split = "test" if key == "test_datasets" else "train"
    sources = tuple(_read_source(entry, cfg, split, key) for entry in datasets_with_name_generator(configs))
    return Corpus(sources, entries_digest(entries), _processes(cfg))


def _processes(cfg: Any) -> int:
    """Axolotl's ``dataset_num_proc``, or all CPUs, shared among the ranks of this machine."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return max(1, int(cfg.get("dataset_num_proc") or available) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def check_entries(entries: Any, *, key: str = "datasets") -> None:
    """What can be said about dataset entries without loading them.

    Raises:
        UntaxError: there are none, one has no path, or its local file is missing or empty.
    """
    if not entries or not isinstance(entries, list):
        raise UntaxError(
            "There is no dataset to read.", where=f"key {key}", fix=f"Give at least one entry with a path under {key}:."
        )
    for entry in entries:
        if not isinstance(entry, Mapping) or not entry.get("path"):
            raise UntaxError(
                "A dataset entry has no path.", where=f"key {key}: {entry}", fix="Add `path:` to the entry."
            )
        path, where = str(entry["path"]), f"key {key}, path {entry['path']}"
        if _is_local(path) and not Path(path).exists():
            raise UntaxError(
                "The dataset does not exist.",
                where=where,
                fix=f"Correct the path; relative ones start where the command is run, {Path.cwd()}.",
            )
        if Path(path).is_file() and _is_blank(Path(path)):
            raise UntaxError("The dataset file is empty.", where=where, fix="Check how the file was written.")


def _is_local(path: str) -> bool:
    """Whether a path cannot be a dataset of the Hub (``name`` or ``owner/name``), a URL or a bucket."""
    if "://" in path:
        return False
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).suffix in DATA_SUFFIXES


def _is_blank(path: Path) -> bool:
    if path.suffix == ".parquet":
        return _parquet_rows(path) == 0
    with path.open("rb") as handle:
        return handle.read(1 << 16).strip() in (b"", b"[]")


def _parquet_rows(path: Path) -> int | None:
    """How many rows a Parquet file has, or None for one that is broken: reading it will say why."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path).num_rows if path.stat().st_size else 0
    except pa.ArrowException:
        return None


def _read_source(entry: Any, cfg: Any, split: str, key: str) -> Source:
    from axolotl.utils.data.shared import load_dataset_with_config

    where = f"key {key}, path {entry['path']}"
    digest = identity(entry)
    try:
        loaded = load_dataset_with_config(entry, cfg.get("hf_use_auth_token"), streaming=False)
    # Loaders raise whatever their format's library raises; the cause is named and kept.
    except Exception as error:
        raise UntaxError(
            f"The dataset cannot be read: {_reason(error)}",
            where=where,
            fix="Check that the file is whole and in its format, the path (relative paths start where the command is "
            "run), `name:`, `split:` and `data_files:`.",
        ) from error
    rows = _one_split(loaded, entry, split, where)
    if entry.get("shards"):
        # The same call as Axolotl's, so that the shard holds the same rows.
        rows = rows.shuffle(seed=_shard_seed(cfg, where)).shard(
            num_shards=entry["shards"], index=entry.get("shards_idx") or 0
        )
    if len(rows) == 0:
        raise UntaxError("The dataset has no rows.", where=where, fix="Check the file and its `split:`.")
    return Source(dict(entry), rows, digest)


def _shard_seed(cfg: Any, where: str) -> int:
    seed = cfg.get("seed")
    if seed is None:
        raise UntaxError(
            "Axolotl shuffles rows before it takes a shard, and without a seed differently each time.",
            where=f"{where}, key shards",
            fix="Set `seed:`.",
        )
    return int(seed)


def _one_split(loaded: Any, entry: Any, split: str, where: str) -> Dataset:
    from datasets import Dataset

    if isinstance(loaded, Dataset):
        return loaded
    for name in (entry.get("split"), split):
        if name and name in loaded:
            return loaded[name]
    raise UntaxError(
        f"The dataset has no split '{split}', only {', '.join(loaded)}.", where=where, fix="Name one with `split:`."
    )


def _reason(error: BaseException) -> str:
    """The last cause's first line: `datasets` wraps the useful message in two general ones."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def identity(entry: Mapping[str, Any]) -> str:
    """The digest of a local dataset's content; for any other dataset its revision, or ``unknown``."""
    return local_identity(entry) or str(entry.get("revision") or "unknown")


def local_identity(entry: Mapping[str, Any]) -> str | None:
    """The digest of what an entry names on this machine, or None for a dataset from elsewhere."""
    path = Path(str(entry["path"]))
    if path.is_file():
        return digest_file(path)
    if path.is_dir():
        return digest_files(path, ["**/*"])
    files = [file for name in _named_files(entry.get("data_files")) for file in _matching(name)]
    # With `path: json`, say, the files are the dataset.
    return digest_json([digest_file(file) for file in files]) if files and all(map(Path.is_file, files)) else None


def _matching(name: str) -> list[Path]:
    """The files that a name of ``data_files`` stands for, which may be a pattern; the name where there is none."""
    matching = sorted(map(Path, glob.glob(name, recursive=True))) if is_pattern(name) else []
    return [path for path in matching if path.is_file()] or [Path(name)]


def is_pattern(name: str) -> bool:
    """Whether a name of ``data_files`` is a pattern for names of local files."""
    return "://" not in name and glob.has_magic(name)


def _named_files(data_files: Any) -> list[str]:
    """The paths under ``data_files``, which may be one, a list, or a mapping of splits to either."""
    if isinstance(data_files, Mapping):
        return [name for value in data_files.values() for name in _named_files(value)]
    if isinstance(data_files, (list, tuple)):
        return [str(name) for name in data_files]
    return [str(data_files)] if data_files else []


def entries_digest(entries: Sequence[Mapping[str, Any]]) -> str:
    """The digest of which rows a YAML's ``datasets:`` names: the paths in their order, and what selects rows of each.

    Other keys of an entry (``type``, for one) say how rows are used and do not count; nor do keys without a value.

    >>> entries_digest([{"path": "a", "split": None}]) == entries_digest([{"path": "a", "type": "alpaca"}])
    True
    """
    return digest_json(
        [
            {key: _plain(entry[key]) for key in ("path", *ROW_KEYS) if entry.get(key) is not None}
            for entry in entries
            if isinstance(entry, Mapping)
        ]
    )


def _plain(value: Any) -> Any:
    """Text and numbers that Axolotl takes for the same are the same here, whatever its validation made of them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else str(value)
