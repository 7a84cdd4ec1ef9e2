"""The rows of a training corpus, read through Axolotl's own loaders."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax.data.digest import corpus_digest, row_digest
from untax.errors import UntaxError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Source:
    """One entry of Axolotl's ``datasets:`` with its rows."""

    entry: dict[str, Any]
    rows: Dataset

    @property
    def name(self) -> str:
        """The entry's path, for messages and tables."""
        return str(self.entry["path"])


@dataclass(frozen=True)
class Corpus:
    """All rows of a corpus: those of its sources, one source after the other."""

    sources: tuple[Source, ...]

    def __len__(self) -> int:
        return sum(len(source.rows) for source in self.sources)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for source in self.sources:
            yield from source.rows

    @functools.cached_property
    def digests(self) -> list[bytes]:
        """The identity of each row, in order; 16 bytes each."""
        return [row_digest(row) for row in self]

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
    if not entries:
        raise UntaxError("There is no dataset to read.", where=f"key {key}", fix=f"Give at least one entry with a path under {key}:.")
    configs = [DictDefault(entry) for entry in entries]
    split = "test" if key == "test_datasets" else "train"
    return Corpus(tuple(_read_source(entry, cfg, split, key) for entry in datasets_with_name_generator(configs)))


def _read_source(entry: Any, cfg: Any, split: str, key: str) -> Source:
    from axolotl.utils.data.shared import load_dataset_with_config

    path = entry.get("path")
    where = f"key {key}, path {path}"
    if not path:
        raise UntaxError("A dataset entry has no path.", where=f"key {key}: {dict(entry)}", fix="Add `path:` to the entry.")
    if Path(path).is_file() and Path(path).stat().st_size == 0:
        raise UntaxError("The dataset file is empty.", where=where, fix="Check how the file was written.")
    try:
        loaded = load_dataset_with_config(entry, cfg.get("hf_use_auth_token"), streaming=False)
    except (OSError, ValueError) as error:
        raise UntaxError(f"The dataset cannot be read: {_reason(error)}", where=where, fix="Check the path (relative paths start where the command is run), `name:` and `data_files:`.") from error
    rows = _one_split(loaded, entry, split, where)
    if entry.get("shards"):
        # The same call as Axolotl's, so that the shard holds the same rows.
        rows = rows.shuffle(seed=cfg.get("seed")).shard(num_shards=entry["shards"], index=entry.get("shards_idx") or 0)
    if len(rows) == 0:
        raise UntaxError("The dataset has no rows.", where=where, fix="Check the file and its `split:`.")
    return Source(dict(entry), rows)


def _one_split(loaded: Any, entry: Any, split: str, where: str) -> Dataset:
    from datasets import Dataset

    if isinstance(loaded, Dataset):
        return loaded
    for name in (entry.get("split"), split):
        if name and name in loaded:
            return loaded[name]
    raise UntaxError(f"The dataset has no split '{split}', only {', '.join(loaded)}.", where=where, fix="Name one with `split:`.")


def _reason(error: BaseException) -> str:
    """The last cause's first line: `datasets` wraps the useful message in two general ones."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
