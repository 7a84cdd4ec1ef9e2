"""Which texts are taken: against sorting all of them by their keys."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untax.errors import UntaxError
from untax.replay.choose import Row, Taker, Target
from untax.replay.cut import Cutter


@dataclass
class WordsOfSpaces:
    """A stand-in for Axolotl's tokenisation whose tokens are words: no texts but those of the test decide."""

    sequence_len: int

    def rows(self, text: str) -> list[int]:
        tokens = len(text.split())
        return [min(self.sequence_len, tokens - start) for start in range(0, tokens, self.sequence_len)]

    def ends(self, text: str) -> list[int]:
        ends, at = [], 0
        for word in text.split():
            at = text.index(word, at) + len(word)
            ends.append(at)
        return ends


@dataclass
class ListPool:
    """Texts in memory."""

    content: list[str]
    shuffled: bool = False
    name: str = "the test"
    passes: int = 0

    def texts(self, tokens: int) -> Iterator[str]:
        self.passes += 1
        yield from self.content


def take(content: list[str], amount: int, *, by: str = "rows", seed: int = 1, length: int = 10, shuffled: bool = False):
    """(rows, their texts in order) of a list."""
    completion: Any = WordsOfSpaces(length)
    spool = io.BytesIO()
    taker = Taker(Cutter(completion, 1), seed, spool, lambda more: None)
    rows = taker.take(ListPool(content, shuffled), Target(amount, by, length)).rows
    return rows, [text_of(spool, row) for row in rows]


def text_of(spool: io.BytesIO, row: Row) -> str:
    return json.loads(spool.getvalue()[row.place : row.place + row.size])["text"]


def key(text: str, seed: int = 1) -> bytes:
    completion: Any = WordsOfSpaces(10)
    return Taker(Cutter(completion), seed, io.BytesIO(), lambda more: None).key(text)


NUMBERED = [f"text {index}" for index in range(200)]


@given(st.permutations(NUMBERED[:30]), st.integers(1, 30), st.integers(-5, 2**70))
def test_the_smallest_keys_are_taken_in_any_order_of_texts(content: list[str], amount: int, seed: int) -> None:
    _, found = take(content, amount, seed=seed)
    assert found == sorted(NUMBERED[:30], key=lambda text: key(text, seed))[:amount]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(1, 12))
def test_equal_texts_count_once(numbers: list[int], amount: int) -> None:
    content = [f"text {number}" for number in numbers]
    distinct = sorted(set(content), key=key)
    if amount <= len(distinct):
        assert take(content, amount)[1] == distinct[:amount]
        assert sorted(take(content, amount, shuffled=True)[1]) == sorted([*dict.fromkeys(content)][:amount])
    else:
        for shuffled in (False, True):
            with pytest.raises(
                UntaxError, match=f"There are {len(distinct)} different texts, which give {len(distinct)}"
            ):
                take(content, amount, shuffled=shuffled)


def test_more_rows_are_the_same_and_some_more() -> None:
    some, more = take(NUMBERED, 20)[1], take(NUMBERED, 120)[1]
    assert more[:20] == some
    assert take(NUMBERED, 20, seed=2)[1] != some


def test_the_choice_favours_no_place() -> None:
    """Of 200 texts 100: a mean place of 99.5, with a standard deviation of 4.1."""
    places = [int(text.split()[1]) for text in take(NUMBERED, 100, seed=3)[1]]
    assert abs(sum(places) / 100 - 99.5) < 4 * 4.1


def test_long_texts_give_their_later_pieces_when_there_are_too_few() -> None:
    long = [" ".join(f"{name}{index}" for index in range(25)) for name in "abc"]
    rows, found = take([*long, "short"], 8)
    assert [row.turn for row in rows] == [0, 0, 0, 0, 1, 1, 1, 2]
    by_name = {name: [text.split() for text in found if text.startswith(name)] for name in "abc"}
    assert all(words[0][0] == f"{name}0" and words[1][0] == f"{name}10" for name, words in by_name.items())
    ordered = sorted(long, key=key)
    assert [text[0] for text in found if text != "short"][:3] == [text[0] for text in ordered]
    assert len(take([*long, "short"], 10)[0]) == 10
    with pytest.raises(UntaxError, match="There are 4 different texts, which give 10 rows, and 11 are wanted"):
        take([*long, "short"], 11)


def test_later_pieces_of_a_stream() -> None:
    long = [" ".join(f"{name}{index}" for index in range(25)) for name in "abc"]
    rows, found = take([*long, long[0]], 5, shuffled=True)
    assert [row.turn for row in rows] == [0, 0, 0, 1, 1]
    assert len(set(found)) == 5


@given(st.lists(st.integers(1, 25), min_size=1, max_size=40), st.integers(1, 300))
def test_as_many_tokens_as_wanted_and_less_than_a_row_more(lengths: list[int], amount: int) -> None:
    content = [" ".join(f"{place}-{index}" for index in range(words)) for place, words in enumerate(lengths)]
    if amount > sum(lengths):
        with pytest.raises(UntaxError, match=f"which give {sum(lengths)} tokens, and {amount} are wanted"):
            take(content, amount, by="tokens")
        return
    rows, found = take(content, amount, by="tokens")
    tokens = sum(row.tokens for row in rows)
    assert tokens == sum(len(text.split()) for text in found)
    assert amount <= tokens < amount + rows[-1].tokens
    assert len(set(found)) == len(found)


def test_a_stream_is_read_no_further_than_needed() -> None:
    def endless() -> Iterator[str]:
        number = 0
        while True:
            yield f"text {number}"
            number += 1
            assert number < 100, "read on"

    class Endless(ListPool):
        def texts(self, tokens: int) -> Iterator[str]:
            return endless()

    completion: Any = WordsOfSpaces(10)
    taker = Taker(Cutter(completion, 1), 1, io.BytesIO(), lambda more: None)
    taken = taker.take(Endless([], shuffled=True), Target(50, "rows", 10))
    assert len(taken.rows) == 50
    assert not taken.whole


def test_blank_texts_are_no_texts() -> None:
    with pytest.raises(UntaxError, match="no text to train on: all are empty"):
        take([], 1)
