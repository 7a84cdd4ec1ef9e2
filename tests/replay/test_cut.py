"""Pieces of texts: each is one training row, and nothing of a text is lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from untax.data.completion import Completion
from untax.replay import cut
from untax.replay.cut import Cutter

# Letters, spaces, characters of several tokens each, and words that are special tokens.
PARTS = ["Lily ", "cat", " was", "glad. ", "\n", "\n\n", "   ", "é", "🙂", "日本", "</s>", "<s>", "\t", "x" * 30]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=40).map("".join)


def squeezed(text: str) -> str:
    return "".join(text.split())


@settings(max_examples=200)
@given(text=TEXTS, length=st.integers(8, 40))
def test_every_piece_is_one_row_and_nothing_is_lost(completion_of, text: str, length: int) -> None:
    completion: Completion = completion_of(length)
    pieces = list(Cutter(completion).pieces(text))
    for piece in pieces:
        assert completion.rows(piece.text) == [piece.tokens]
        assert 2 <= piece.tokens <= length
    assert squeezed("".join(piece.text for piece in pieces)) == squeezed(text)


@pytest.fixture(scope="module")
def completion_of(completion):
    """Loaded once for each length."""
    known: dict[int, Completion] = {}

    def load(length: int) -> Completion:
        if length not in known:
            known[length] = completion(length)
        return known[length]

    return load


@pytest.mark.parametrize("length", [16, 64, 200])
def test_rows_of_prose_are_full(completion, length: int) -> None:
    text = "Once upon a time there was a girl named Lily. She had a red ball, and she liked to play in the park. " * 30
    *full, last = Cutter(completion(length)).pieces(text)
    assert len(full) > 2
    assert all(length - 2 <= piece.tokens <= length for piece in full)
    assert last.tokens <= length


def test_a_text_that_fits_exactly_stays_whole(completion) -> None:
    """Axolotl adds the token that ends a text: one more, and there are two rows."""
    text = "Lily saw a cat and a dog."
    (length,) = completion(64).rows(text)
    assert [piece.text for piece in Cutter(completion(length)).pieces(text)] == [text]
    shorter = list(Cutter(completion(length - 1)).pieces(text))
    assert len(shorter) == 2
    assert text.startswith(shorter[0].text)


def test_the_window_grows_where_tokens_are_long(completion, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Once upon a time there was a girl named Lily. " * 60
    cutter = Cutter(completion(32))
    expected = list(cutter.pieces(text))
    monkeypatch.setattr(cut, "WINDOW", 1)
    assert list(cutter.pieces(text)) == expected


def test_rows_that_axolotl_would_drop_are_none(completion) -> None:
    text = "Lily saw a cat."
    (tokens,) = completion(64).rows(text)
    assert len(list(Cutter(completion(64), shortest=tokens).pieces(text))) == 1
    assert list(Cutter(completion(64), shortest=tokens + 1).pieces(text)) == []
    assert list(Cutter(completion(64)).pieces("")) == []


def test_real_texts(completion, real_text) -> None:
    import json

    texts = [json.loads(line)["text"] for line in real_text("c4_demo.jsonl.gz").splitlines()[:20]]
    texts.append(real_text("wiki_demo.txt.gz")[:60_000])
    cutter = Cutter(completion(128))
    for text in texts:
        pieces = list(cutter.pieces(text))
        assert all(cutter.completion.rows(piece.text) == [piece.tokens] for piece in pieces)
        assert squeezed("".join(piece.text for piece in pieces)) == squeezed(text)
        assert sum(piece.tokens >= 120 for piece in pieces[:-1]) == len(pieces) - 1
