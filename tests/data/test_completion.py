"""Axolotl's tokenisation of plain text, asked beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toys import BASE
from untax.data.completion import load_completion
from untax.errors import UntaxError

TEXT = "Once upon a time, Lily had a red ball. "


def test_rows_are_axolotls_chunks() -> None:
    """The tokens of the text, the one that begins it and the one that ends it, in chunks."""
    completion = load_completion({"base_model": str(BASE)}, 32)
    tokens = completion.tokens(TEXT * 10)
    rows = completion.rows(TEXT * 10)
    assert sum(rows) == tokens + 1
    assert rows[:-1] == [32] * (len(rows) - 1)
    assert completion.rows("") == []


@pytest.mark.parametrize("text", [TEXT, "Grün 🙂🙂", "a</s>b", " \n "])
def test_ends_are_those_of_the_texts_own_tokens(text: str) -> None:
    completion = load_completion({"base_model": str(BASE)}, 32)
    ends = completion.ends(text)
    assert len(ends) == completion.tokens(text) - 1
    assert ends == sorted(ends)
    assert ends[-1] == len(text)


def test_keys_of_the_yaml_decide_the_tokens() -> None:
    plain = load_completion({"base_model": str(BASE)}, 32)
    added = load_completion(
        {"base_model": str(BASE), "tokens": ["time, Lily had a red"], "special_tokens": {"pad_token": "<unk>"}}, 32
    )
    assert added.tokens(TEXT) < plain.tokens(TEXT)


def test_overridden_tokens_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    load_completion({"base_model": str(BASE), "added_tokens_overrides": {0: "<zero>"}}, 32)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_without_offsets_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((BASE / "config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    with pytest.raises(UntaxError, match="does not say where in the text its tokens are"):
        load_completion({"base_model": str(tmp_path), "tokenizer_type": "ByT5Tokenizer"}, 32)


def test_a_base_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((BASE / "config.json").read_text())
    with pytest.raises(UntaxError, match="tokenizer cannot be loaded"):
        load_completion({"base_model": str(tmp_path)}, 32)
