"""The texts of a file, read one after the other and never all at once; and a choice of some of them."""

from __future__ import annotations

import functools
import gzip
import hashlib
import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from untax.errors import UntaxError

if TYPE_CHECKING:
    from untax.data.corpus import Corpus, Source

TEXT_SUFFIXES = {".txt"}
ROW_SUFFIXES = {".jsonl", ".json", ".parquet"}
COLUMN = "text"
"""The column that is read by default; rows without it may be of instruction, input and output."""
ALPACA = ("instruction", "input", "output")
END_OF_TEXT = "<|endoftext|>"
BLANK_LINE = r"\n[^\S\n]*\n"
BLOCK = 1 << 20
# A longer separator than this is found only in what is kept of a text.
CARRIED = 4096
# Far more than the tokens of any vocabulary have on average: a text is never cut to fewer tokens than it was to have.
CHARACTERS_PER_TOKEN = 128

_WHOLE = "Check that the file is whole, has rows, and is what its name says: .jsonl, .json or .parquet."

Prompt = Callable[[Mapping[str, Any]], str]
"""What is put before the response of a row with an instruction."""


@dataclass(frozen=True)
class Text:
    """One text.

    Attributes:
        position: its number among the file's texts that are not blank, from 0.
        text: what is scored.
        prompt: what precedes it and is not scored.
    """

    position: int
    text: str
    prompt: str = ""


@dataclass(frozen=True)
class TextFile:
    """The texts of a file that are not blank, in their order, as often as they are asked for.

    Args:
        path: ``.txt`` (also ``.txt.gz``), ``.jsonl``, ``.json`` or ``.parquet``.
        column: of rows: the one with the text. With ``prompt``, rows without the column ``text`` but with
            ``instruction`` and ``output`` give the output, after their prompt.
        separator: what stands between two texts of a ``.txt``; by default ``<|endoftext|>`` if that occurs in it, else
            blank lines.
        prompt: makes the prompt of a row with an instruction.
        option: the option of the command that named the file, for messages.
    """

    path: Path
    column: str = COLUMN
    separator: str | None = None
    prompt: Prompt | None = None
    option: str = "--data"

    def texts(self, tokens: int) -> Iterator[Text]:
        """The texts, one after the other.

        Args:
            tokens: how many tokens of a text will be read; what certainly lies beyond them is dropped.

        Raises:
            UntaxError: the file is missing, empty, of another kind, not readable, or its rows have no such column.
        """
        refuse_file(self.path, option=self.option)
        most = tokens * CHARACTERS_PER_TOKEN
        position = 0
        for before, text in self._of_text(most) if is_text(self.path) else self._of_rows(most):
            if text and not text.isspace():
                yield Text(position, text, before)
                position += 1

    def open(self) -> None:
        """Read what takes a process of its own, which is best started before torch is here."""
        refuse_file(self.path, option=self.option)
        if not is_text(self.path):
            _ = self._corpus

    @functools.cached_property
    def _corpus(self) -> Corpus:
        from untax.data.corpus import check_entries
        from untax.data.parallel import apart

        entries = [{"path": str(self.path)}]
        try:
            check_entries(entries, key="data")
            # Reading takes Axolotl, whose import need not stay in this process.
            return apart(_read, entries)
        except UntaxError as error:
            # It speaks of keys of Axolotl's YAMLs, and here is only a file.
            raise UntaxError(error.problem, where=f"{self.option} {self.path}", fix=_WHOLE) from error

    def _of_text(self, most: int) -> Iterator[tuple[str, str]]:
        path, separator = self.path, self.separator
        try:
            if separator is None and occurs(END_OF_TEXT, path):
                separator = END_OF_TEXT
            pattern = re.compile(re.escape(separator) if separator else BLANK_LINE)
            with opened(path) as file:
                for text in _split(iter(lambda: file.read(BLOCK), ""), pattern, most):
                    yield "", text.strip()
        except UnicodeDecodeError as error:
            raise UntaxError(
                f"The text is not UTF-8: {error.reason}.", where=path, fix="Convert it to UTF-8."
            ) from error
        except (gzip.BadGzipFile, EOFError) as error:
            raise UntaxError(f"The file cannot be unpacked: {error}.", where=path, fix="Download it again.") from error

    def _of_rows(self, most: int) -> Iterator[tuple[str, str]]:
        for source in self._corpus.sources:
            own = _columns(source, self.column, instructions=self.prompt is not None)
            for batch in source.batches():
                for row in batch.select(own).to_pylist():
                    if len(own) > 1 and self.prompt is not None:
                        yield self.prompt(row), _cell(row, "output", source)[:most]
                    else:
                        yield "", _cell(row, self.column, source)[:most]


def choose(texts: Iterable[Text], *, samples: int, seed: int) -> tuple[list[Text], int]:
    """The first ``samples`` texts of a shuffled order, and how many texts there are.

    The order is that of hash(seed, position): more samples are the same ones and some more, and only those chosen so
    far are in memory.
    """
    # A heap with the last of the chosen on top.
    chosen: list[tuple[int, int, Text]] = []
    count = 0
    for text in texts:
        count += 1
        entry = (-_hash(seed, text.position), -text.position, text)
        if len(chosen) < samples:
            heapq.heappush(chosen, entry)
        elif entry > chosen[0]:
            heapq.heapreplace(chosen, entry)
    return [text for _, _, text in sorted(chosen, reverse=True)], count


def _hash(seed: int, position: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest(), "big")


def is_text(path: Path) -> bool:
    """Whether a file is plain text rather than rows, by its name."""
    return _suffix(path) in TEXT_SUFFIXES


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def refuse_file(path: Path, *, option: str = "--data") -> None:
    """Make sure that a file, named by an option of a command, is there and of a known kind.

    Raises:
        UntaxError: it is not.
    """
    if not path.is_file():
        raise UntaxError("There is no such data file.", where=path, fix=f"Name a file with {option}.")
    known = TEXT_SUFFIXES | ROW_SUFFIXES
    if _suffix(path) not in known:
        raise UntaxError(
            f"What this file holds cannot be told from its name: '{path.name}'.",
            where=path,
            fix=f"Give a file that ends in {', '.join(sorted(known))}.",
        )


# Plain text


def opened(path: Path) -> IO[str]:
    """The file as text, unpacked where it is packed."""
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


def occurs(wanted: str, path: Path) -> bool:
    """Whether a text stands anywhere in the file, of which a block at a time is in memory."""
    end = ""
    with opened(path) as file:
        while block := file.read(BLOCK):
            end += block
            if wanted in end:
                return True
            end = end[-len(wanted) :]
    return False


def _split(blocks: Iterable[str], separator: re.Pattern[str], most: int) -> Iterator[str]:
    """The texts between separators, each cut to ``most`` characters; no more than that and a block is in memory."""
    kept, rest = "", ""
    for block in blocks:
        *whole, rest = separator.split(rest + block)
        for text in whole:
            yield (kept + text)[:most]
            kept = ""
        if len(rest) > CARRIED:
            # The separator may lie across the border of two blocks.
            kept, rest = (kept + rest[:-CARRIED])[: most + CARRIED], rest[-CARRIED:]
    yield (kept + rest)[:most]


# Rows


def _read(entries: list[dict[str, Any]]) -> Corpus:
    from untax.data.corpus import read_corpus

    return read_corpus({"datasets": entries})


def _columns(source: Source, column: str, *, instructions: bool) -> list[str]:
    """The columns to read: the one with the text, or several of an instruction."""
    known = source.rows.column_names
    if column in known:
        return [column]
    if instructions and column == COLUMN and {"instruction", "output"} <= set(known):
        return [name for name in ALPACA if name in known]
    raise no_column(column, known, where=source.name, instructions=instructions and column == COLUMN)


def no_column(column: str, known: Iterable[str], *, where: object, instructions: bool = True) -> UntaxError:
    """What is said where rows have no such column."""
    also = ", or give rows of instruction, input and output" if instructions else ""
    return UntaxError(
        f"The rows have no column '{column}', only {', '.join(known)}.",
        where=where,
        fix=f"Name the column with the text with --column{also}.",
    )


def _cell(row: Mapping[str, Any], column: str, source: Source) -> str:
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise not_text(column, type(value).__name__, where=source.name)
    return value or ""


def not_text(column: str, kind: str, *, where: object) -> UntaxError:
    """What is said where a column has other values than text."""
    return UntaxError(
        f"The column '{column}' holds a {kind}, not text.",
        where=where,
        fix="Name the column with the text with --column.",
    )
