"""Which texts become replay rows: those with the smallest keyed hashes, first pieces before later ones."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO, NamedTuple

from untax.data.text_files import CHARACTERS_PER_TOKEN
from untax.errors import UntaxError
from untax.replay.cut import Cutter, Piece
from untax.replay.sources import Pool

KEY_BYTES = 16
# More texts than rows are looked at in the first place: some have no tokens, some have few.
SPARE = 1.05


class Row(NamedTuple):
    """A row that was cut; sorted as they are taken.

    Attributes:
        turn: 0 for the first piece of a text, 1 for the second, ...
        key: the hash of seed and text.
        tokens: of its training row.
        place: where its line begins in the spool.
        size: of the line, in bytes.
    """

    turn: int
    key: bytes
    tokens: int
    place: int
    size: int


@dataclass(frozen=True)
class Target:
    """How much is wanted.

    Attributes:
        amount: how many.
        by: of what: ``rows`` or ``tokens``.
        sequence_len: the most tokens of a row.
    """

    amount: int
    by: str
    sequence_len: int

    def size(self, tokens: int) -> int:
        """What a row of so many tokens counts."""
        return tokens if self.by == "tokens" else 1

    @property
    def rows(self) -> int:
        """The fewest rows that may be enough."""
        return -(-self.amount // self.sequence_len) if self.by == "tokens" else self.amount

    @property
    def tokens(self) -> int:
        """The most tokens of one text that may be needed."""
        return self.amount if self.by == "tokens" else self.amount * self.sequence_len

    def prefix(self, rows: Iterable[Row]) -> tuple[list[Row], int]:
        """The first rows that are enough, or all; and what they count together."""
        taken, sum_ = [], 0
        for row in rows:
            if sum_ >= self.amount:
                break
            taken.append(row)
            sum_ += self.size(row.tokens)
        return taken, sum_


@dataclass(frozen=True)
class Taken:
    """What was taken of a pool.

    Attributes:
        rows: in the order of taking.
        whole: whether every text of the pool was looked at and used.
    """

    rows: list[Row]
    whole: bool


class Taker:
    """Takes rows from a pool.

    Args:
        cutter: cuts texts.
        seed: of the choice.
        spool: a file for the rows' lines, of which only places are in memory.
        tick: called with what each new row counts, for a progress bar.
    """

    def __init__(self, cutter: Cutter, seed: int, spool: IO[bytes], tick: Callable[[int], object]):
        self.cutter, self.seed, self.spool, self.tick = cutter, seed, spool, tick
        self.place = 0

    def take(self, pool: Pool, target: Target) -> Taken:
        """The rows of a pool.

        Of files, the texts with the smallest keys are taken, of a stream the first ones. If all texts together are too
        few, second pieces of long ones follow, then third ones, and so on. No two texts are the same.

        Raises:
            UntaxError: the pool has too little.
        """
        first, whole = self._streamed(pool, target) if pool.shuffled else self._sampled(pool, target)
        rows, found = target.prefix(first)
        if found < target.amount:
            rows, found = target.prefix(sorted([*first, *self._later(pool, target)]))
        if found < target.amount:
            raise _too_little(pool, target, texts=len(first), found=found)
        return Taken(rows, whole)

    def _sampled(self, pool: Pool, target: Target) -> tuple[list[Row], bool]:
        """First pieces of the texts with the smallest keys, in the order of keys; and whether those are all texts."""
        cut: dict[bytes, Row | None] = {}
        count = int(target.rows * SPARE) + 1
        while True:
            chosen = self._smallest(pool, count)
            for text in pool.texts(self.cutter.completion.sequence_len):
                key = self.key(text)
                if key in chosen and key not in cut:
                    cut[key] = self._first(key, text, target)
            rows = sorted(row for row in cut.values() if row is not None)
            if len(chosen) < count:
                return rows, True
            _, found = target.prefix(rows)
            if found >= target.amount:
                return rows, False
            count = int(count * max(1.5, SPARE * target.amount / max(1, found)))

    def _smallest(self, pool: Pool, count: int) -> set[bytes]:
        """The ``count`` smallest keys of a pool, or all; equal texts have one."""
        heap: list[_Largest] = []
        keys: set[bytes] = set()
        for text in pool.texts(self.cutter.completion.sequence_len):
            key = self.key(text)
            if key in keys or (len(heap) == count and key > heap[0].key):
                continue
            keys.add(key)
            if len(heap) < count:
                heapq.heappush(heap, _Largest(key))
            else:
                keys.discard(heapq.heapreplace(heap, _Largest(key)).key)
        return keys

    def _streamed(self, pool: Pool, target: Target) -> tuple[list[Row], bool]:
        """First pieces in the order of the stream, as far as needed; and whether it came to its end."""
        rows: list[Row] = []
        seen: set[bytes] = set()
        found = 0
        for text in pool.texts(self.cutter.completion.sequence_len):
            key = self.key(text)
            if key in seen:
                continue
            seen.add(key)
            row = self._first(key, text, target)
            if row is not None:
                rows.append(row)
                found += target.size(row.tokens)
            if found >= target.amount:
                return rows, False
        return rows, True

    def _later(self, pool: Pool, target: Target) -> Iterator[Row]:
        """All but the first pieces of every text."""
        seen: set[bytes] = set()
        for text in pool.texts(target.tokens):
            key = self.key(text)
            if key in seen:
                continue
            seen.add(key)
            pieces = enumerate(islice(self.cutter.pieces(text), target.amount))
            yield from (self._row(turn, key, piece) for turn, piece in pieces if turn)

    def _first(self, key: bytes, text: str, target: Target) -> Row | None:
        piece = next(self.cutter.pieces(text), None)
        if piece is None:
            return None
        self.tick(target.size(piece.tokens))
        return self._row(0, key, piece)

    def _row(self, turn: int, key: bytes, piece: Piece) -> Row:
        line = json.dumps({"text": piece.text}, ensure_ascii=False).encode() + b"\n"
        self.spool.write(line)
        self.place += len(line)
        return Row(turn, key, piece.tokens, self.place - len(line), len(line))

    def key(self, text: str) -> bytes:
        """The keyed hash of a text, or of as much of it as one row may need: the same wherever the text stands."""
        beginning = text[: self.cutter.completion.sequence_len * CHARACTERS_PER_TOKEN]
        return hashlib.blake2b(beginning.encode(), digest_size=KEY_BYTES, key=str(self.seed).encode()).digest()


class _Largest(NamedTuple):
    """A key for a heap with the largest on top."""

    key: bytes

    def __lt__(self, other: tuple[bytes, ...]) -> bool:
        return bool(self.key > other[0])


def _too_little(pool: Pool, target: Target, *, texts: int, found: int) -> UntaxError:
    if not texts:
        return UntaxError("There is no text to train on: all are empty.", where=pool.name, fix="Check the texts.")
    return UntaxError(
        f"There are {texts:,} different texts, which give {found:,} {target.by}, and {target.amount:,} are wanted. "
        "No text is repeated.",
        where=pool.name,
        fix="Give more texts with --texts, or ask for less: --rows, --ratio.",
    )
