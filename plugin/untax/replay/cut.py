"""Texts cut into pieces of which Axolotl's ``type: completion`` makes one training row each."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from untax.data.completion import Completion

# Characters for each token of a row that are tokenised at once to find where a piece ends: half as many again as a
# token of prose has. They are doubled while they make less than a row.
WINDOW = 6
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Piece:
    """A piece of a text.

    Attributes:
        text: what it says.
        tokens: how many tokens its training row has, with the special ones.
    """

    text: str
    tokens: int


@dataclass(frozen=True)
class Cutter:
    """Cuts texts at the ends of tokens.

    Attributes:
        completion: Axolotl's tokenisation.
        shortest: Axolotl drops rows of fewer tokens (its ``min_sample_len``), so they are none here.
    """

    completion: Completion
    shortest: int = 2

    def pieces(self, text: str) -> Iterator[Piece]:
        """The pieces of a text from its beginning, each as long as a training row can be.

        White space between two pieces is left out.
        """
        start = 0
        while start < len(text):
            end, tokens = self._next(text, start)
            if tokens >= self.shortest:
                yield Piece(text[start:end], tokens)
            start = end + len(_SPACE.match(text, end)[0])  # type: ignore[index]

    def _next(self, text: str, start: int) -> tuple[int, int]:
        """Where the piece from ``start`` ends, and how many tokens its row has; 0 if it makes none."""
        window = self.completion.sequence_len * WINDOW
        while True:
            part = text[start : start + window]
            ends = self.completion.ends(part)
            if len(ends) > self._room:
                return self._cut(part, ends, start)
            if start + window >= len(text):
                tokens = self._tokens(part)
                return self._cut(part, ends, start) if tokens is None else (len(text), tokens)
            window *= 2

    def _cut(self, part: str, ends: list[int], start: int) -> tuple[int, int]:
        """The longest beginning that ends with a token and proves to be one row.

        A text that is cut can have other tokens at its end than before, so it is tokenised again.
        """
        for end in sorted(set(ends[: self._room]), reverse=True):
            tokens = self._tokens(part[:end]) if end else None
            if tokens is not None:
                return start + end, tokens
        return start + 1, 0  # A character of more tokens than a row has.

    def _tokens(self, text: str) -> int | None:
        """How many tokens the one training row of a text has, 0 if it has none; None when there are several rows."""
        lengths = self.completion.rows(text)
        return None if len(lengths) > 1 else sum(lengths)

    @functools.cached_property
    def _room(self) -> int:
        """How many tokens of a text have room in a row, beside the special ones that are added."""
        added = sum(self.completion.rows("a")) - len(self.completion.ends("a"))
        return max(0, self.completion.sequence_len - added)
