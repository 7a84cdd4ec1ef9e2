"""Texts to choose from: of files all that they hold, of datasets a seeded stream, read no further than needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from untax.data.corpus import DATA_SUFFIXES, local_identity
from untax.data.text_columns import check_columns
from untax.data.text_files import CHARACTERS_PER_TOKEN, TextFile, is_text, no_column, not_text
from untax.errors import UntaxError
from untax.replay.request import TextSource

if TYPE_CHECKING:
    from datasets import IterableDataset

SHUFFLE_BUFFER = 10_000
"""Texts of a stream among which the next one is drawn; shards are shuffled as well."""
OPTION = "--texts"


class Pool(Protocol):
    """Texts that are chosen from together."""

    @property
    def name(self) -> str:
        """What it is of, for messages."""

    @property
    def shuffled(self) -> bool:
        """Whether the texts come in the order in which they are to be taken."""

    def texts(self, tokens: int) -> Iterator[str]:
        """The texts that are not blank, in the same order at every call; of each, what ``tokens`` tokens need."""


@dataclass(frozen=True)
class FilePool:
    """All texts of some files."""

    files: tuple[TextFile, ...]
    shuffled: bool = False

    @property
    def name(self) -> str:
        """The files' paths."""
        return ", ".join(str(file.path) for file in self.files)

    def open(self) -> None:
        """Read what takes processes of its own."""
        for file in self.files:
            file.open()

    def texts(self, tokens: int) -> Iterator[str]:
        """Those of one file after the other."""
        for file in self.files:
            for text in file.texts(tokens):
                yield text.text


@dataclass(frozen=True)
class StreamPool:
    """The texts of a dataset in the order of a seed."""

    source: TextSource
    seed: int
    shuffled: bool = True

    @property
    def name(self) -> str:
        """The dataset's path or id."""
        return self.source.path

    def texts(self, tokens: int) -> Iterator[str]:
        """Those of the stream, which begins anew.

        Raises:
            UntaxError: the dataset cannot be read, or its rows have no such column.
        """
        column, most = self.source.column, tokens * CHARACTERS_PER_TOKEN
        rows = iter(self._rows())
        while (row := self._next(rows)) is not None:
            if column not in row:
                raise no_column(column, row, where=self.name, instructions=False)
            text = row[column]
            if text is not None and not isinstance(text, str):
                raise not_text(column, type(text).__name__, where=self.name)
            if text and not text.isspace():
                yield text[:most]

    def _next(self, rows: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
        try:
            return next(rows, None)
        except Exception as error:  # Whatever the network and the file's format raise.
            raise self._unreadable(error) from error

    def _rows(self) -> IterableDataset:
        from datasets import load_dataset, load_from_disk

        source = self.source
        split = source.split or "train"
        try:
            if _is_saved(Path(source.path)):
                saved = load_from_disk(source.path)
                rows = (saved[split] if isinstance(saved, dict) else saved).to_iterable_dataset()
            else:
                rows = load_dataset(source.path, source.name, split=split, streaming=True, revision=source.revision)
        except KeyError as error:
            raise UntaxError(
                f"The dataset has no split '{split}', only {', '.join(saved)}.", where=self.name, fix="Say --split."
            ) from error
        # Loaders raise whatever their format's library raises; the cause is named and kept.
        except Exception as error:
            raise self._unreadable(error) from error
        return rows.shuffle(seed=self.seed, buffer_size=SHUFFLE_BUFFER)

    def _unreadable(self, error: Exception) -> UntaxError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return UntaxError(
            f"The dataset cannot be read: {reason}",
            where=f"{OPTION} {self.name}",
            fix="Check its id, --split and --name, and that the hub can be reached.",
        )


def _is_saved(folder: Path) -> bool:
    """Whether ``datasets.save_to_disk`` wrote a folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def pools(sources: tuple[TextSource, ...], seed: int, identities: Mapping[str, str]) -> list[Pool]:
    """One pool of all files together, and one of each dataset.

    Args:
        sources: where the texts are.
        seed: of a stream's order.
        identities: ``texts/<path>`` -> ``source_identity``; of a dataset of the hub that very commit is read.
    """
    files = tuple(
        TextFile(Path(source.path), source.column, source.separator, option=OPTION)
        for source in sources
        if source.is_file
    )
    streams = [StreamPool(_at(source, identities), seed) for source in sources if not source.is_file]
    return [*([FilePool(files)] if files else []), *streams]


def _at(source: TextSource, identities: Mapping[str, str]) -> TextSource:
    kind, _, commit = identities.get(f"texts/{source.path}", "").rpartition("@")
    return replace(source, revision=commit) if kind.startswith("hub:") else source


def check_sources(sources: tuple[TextSource, ...]) -> None:
    """What can be refused before anything is read.

    Raises:
        UntaxError: there are no sources, a path is missing or named twice, a file has no such column, or an option
            does not fit what it is for.
    """
    if not sources:
        raise UntaxError("No texts are named.", where=OPTION, fix="Name a file, a folder or a dataset of the hub.")
    if len(set(sources)) < len(sources):
        raise UntaxError("The same texts are named twice.", where=OPTION, fix="Name them once.")
    for source in sources:
        _check_file(source) if source.is_file else _check_dataset(source)


def _check_file(source: TextSource) -> None:
    path = Path(source.path)
    check_columns(path, source.column, instructions=False, option=OPTION)
    if source.name is not None or source.revision is not None or source.split not in (None, "train"):
        raise UntaxError(
            "A file has no splits, configurations or revisions.",
            where=f"{OPTION} {path}",
            fix="Leave out --split, --name and --revision, or give them for each --texts, '' for this one.",
        )
    if source.separator is not None and not is_text(path):
        raise UntaxError(
            "A separator is for plain text, and this file has rows.",
            where=f"{OPTION} {path}",
            fix="Leave out --separator, or give it for each --texts, '' for this one.",
        )


def _check_dataset(source: TextSource) -> None:
    path, where = Path(source.path), f"{OPTION} {source.path}"
    if source.separator is not None:
        raise UntaxError(
            "A separator is for plain text, and a dataset has rows.", where=where, fix="Leave out --separator."
        )
    if path.is_dir():
        if not any(file.is_file() for file in path.rglob("*")):
            raise UntaxError("The folder holds no files.", where=where, fix="Name the folder of a dataset.")
    elif (
        "://" in source.path
        or source.path.startswith((".", "/", "~"))
        or source.path.count("/") > 1
        or path.suffix in DATA_SUFFIXES
    ):
        raise UntaxError(
            "There is no such file or folder, and it is no id of a dataset of the hub.",
            where=where,
            fix="Correct the path; relative ones start where the command is run. What lies at a URL, download.",
        )


def source_identity(source: TextSource) -> str:
    """The digest of a file or folder; of a dataset of the hub its id and commit.

    Raises:
        UntaxError: the hub does not answer, or has no such dataset.
    """
    own = local_identity({"path": source.path})
    if own is not None:
        return own
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(source.path, revision=source.revision).sha
    except Exception as error:  # Whatever the network raises.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UntaxError(
            f"The hub does not say what this dataset is: {reason}",
            where=f"{OPTION} {source.path}",
            fix="Check the id and the network, or name a file or folder of this machine.",
        ) from error
    return f"hub:{source.path}@{commit}"
