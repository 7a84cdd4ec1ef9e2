"""What is asked for: typed options over what a training's YAML says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from untax.errors import UntaxError
from untax.replay.request import SEQUENCE_LEN, Like, Request, TextSource, make_request, read_like

CONTENT: dict[str, Any] = {
    "base_model": "org/base",
    "tokenizer_config": "org/tokenizer",
    "sequence_len": 512,
    "special_tokens": {"pad_token": "<unk>"},
    "learning_rate": 0.1,
    "hf_use_auth_token": True,
    "datasets": [{"path": "sft.jsonl", "type": "alpaca"}, {"path": "./outputs/replay-text/replay.jsonl"}],
}
OUT = Path("outputs/replay-text")


def asked(like: Like | None = None, **options: Any) -> Request:
    given = {"base": None, "sequence_len": None, "rows": None, "ratio": None, "by": None, "seed": 42, **options}
    return make_request((TextSource("c4.txt"),), like=like, trust_remote_code=False, where="the test", **given)


def test_what_a_yaml_says() -> None:
    like = read_like(CONTENT, Path(), OUT)
    assert like.entries == ({"path": "sft.jsonl", "type": "alpaca"},)
    request = asked(like)
    assert (request.tokenizer, request.sequence_len, request.ratio, request.by) == ("org/tokenizer", 512, 1.0, "rows")
    assert request.cfg == {key: CONTENT[key] for key in ("base_model", "tokenizer_config", "special_tokens")}


def test_what_is_typed_goes_first() -> None:
    request = asked(read_like(CONTENT, Path(), OUT), base="org/other", sequence_len=64, ratio=0.5, by="tokens")
    assert request.cfg["base_model"] == "org/other"
    assert (request.sequence_len, request.ratio, request.by) == (64, 0.5, "tokens")
    assert asked(base="b", rows=3).sequence_len == SEQUENCE_LEN


@pytest.mark.parametrize("change", [{"datasets": 3}, {"sequence_len": "512"}, {"min_sample_len": [1]}])
def test_a_yaml_with_other_types(change: dict[str, Any]) -> None:
    with pytest.raises(UntaxError, match=next(iter(change))):
        read_like({**CONTENT, **change}, Path(), OUT)


@pytest.mark.parametrize("ratio", [float("nan"), float("inf")])
def test_a_ratio_that_is_no_amount(ratio: float) -> None:
    with pytest.raises(UntaxError, match="ratio"):
        asked(read_like(CONTENT, Path(), OUT), ratio=ratio)


@pytest.mark.parametrize("path", ["outputs/replay-text", "outputs/x/../replay-text/replay.jsonl"])
def test_the_replay_text_is_no_instruction_data_however_it_is_written(path: str) -> None:
    like = read_like({**CONTENT, "datasets": [{"path": "sft.jsonl"}, {"path": path}]}, Path(), OUT)
    assert like.entries == ({"path": "sft.jsonl"},)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"learning_rate": 1.0, "hf_use_auth_token": False, "seed": 3}, True),
        ({"datasets": [{"path": "sft.jsonl", "type": "alpaca:chat"}]}, True),
        ({"datasets": [{"path": "sft.jsonl", "split": "test"}]}, False),
        ({"disperse_first_turn": True}, False),
        ({"min_sample_len": 9}, False),
        ({"tokens": ["<new>"]}, False),
    ],
)
def test_the_record_is_of_what_decides_the_rows(changes: dict[str, Any], same: bool) -> None:
    record = asked(read_like(CONTENT, Path(), OUT)).record()
    assert (asked(read_like({**CONTENT, **changes}, Path(), OUT)).record() == record) is same


def test_shards_depend_on_the_seed() -> None:
    sharded = {**CONTENT, "datasets": [{"path": "sft.jsonl", "shards": 2}]}
    records = [asked(read_like({**sharded, "seed": seed}, Path(), OUT)).record() for seed in (1, 2)]
    assert records[0] != records[1]


@pytest.mark.parametrize(
    ("like", "options", "expected"),
    [
        (None, {"rows": 3}, "model whose tokenizer counts is not named"),
        (None, {"base": "b"}, "How many rows to write is not said"),
        (None, {"base": "b", "rows": 3, "ratio": 1.0}, "Say one of them"),
        (None, {"base": "b", "rows": 3, "by": "tokens"}, "Say one of them"),
        ({"base_model": "b", "datasets": [{"path": "outputs/replay-text"}]}, {}, "no instruction data"),
    ],
)
def test_contradictions_are_said(like: dict[str, Any] | None, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UntaxError) as caught:
        asked(read_like(like, Path(), OUT) if like else None, **options)
    assert expected in str(caught.value)
