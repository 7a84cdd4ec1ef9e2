"""The bundled data: what NOTICE promises, and that the script makes the same bytes again."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import untax.demo
from untax.demo import build_data, sampling, sources
from untax.evaluate.suites.demo import documents

DEMO = Path(untax.demo.__file__).parent
SHARED = Path(__file__).parents[3] / "shared"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DEMO / "data" / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DEMO / "base")


def key(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().lower()


def test_sizes_and_sources() -> None:
    counts = {name: len(rows(name)) for name in ("sft", "heldout", "preference", "preference_heldout", "base_samples")}
    assert 2000 <= counts["sft"] <= 4000
    assert counts["preference"] >= 400
    assert counts["heldout"] >= 150
    assert counts["preference_heldout"] >= 120
    assert counts["base_samples"] >= 100
    by_source = Counter(row["source"] for row in rows("sft"))
    assert max(by_source.values()) < 0.25 * counts["sft"]
    assert sum(count >= 150 for count in by_source.values()) >= 6


def test_only_sources_that_may_be_bundled() -> None:
    instructions = {row["source"] for row in rows("sft") + rows("heldout")}
    assert all(name == "t0" or name.startswith(("flan_cot_", "gpteacher_")) for name in instructions)
    pairs = {row["source"] for row in rows("preference") + rows("preference_heldout")}
    assert pairs <= {"pandalm_human", "llmbar_human", "dpo_en_demo"}
    notice = (DEMO / "NOTICE").read_text(encoding="utf-8")
    assert all(name in notice for name in instructions | pairs)


def test_columns_and_no_duplicates() -> None:
    sft = rows("sft")
    assert all(list(row) == ["source", "instruction", "input", "output"] for row in sft)
    assert all(isinstance(row["input"], str) and row["instruction"] and row["output"] for row in sft)
    assert len({(key(row["instruction"]), key(row["input"])) for row in sft}) == len(sft)
    pairs = rows("preference")
    assert all(list(row) == ["source", "prompt", "chosen", "rejected"] for row in pairs)
    assert len({tuple(row.values()) for row in pairs}) == len(pairs)
    assert all(row["chosen"] != row["rejected"] for row in pairs)
    both_ways = {(row["prompt"], row["chosen"], row["rejected"]) for row in pairs}
    assert not any((prompt, rejected, chosen) in both_ways for prompt, chosen, rejected in both_ways)


def test_held_out_means_held_out() -> None:
    trained = {key(row["instruction"]) for row in rows("sft")}
    trained_pairs = {key(row["prompt"]) for row in rows("preference")}
    held = {key(row["instruction"]) for row in rows("heldout")}
    held_pairs = {key(row["prompt"]) for row in rows("preference_heldout")}
    assert not held & (trained | trained_pairs | held_pairs)
    assert not held_pairs & (trained | trained_pairs)


def test_rows_fit(tokenizer: Any) -> None:
    def length(row: dict[str, Any], answer: str) -> int:
        prompt = tokenizer.encode(documents.prompt(row) + "\n")
        return len(prompt) + len(tokenizer.encode(answer, add_special_tokens=False)) + 1

    assert max(length(row, row["output"]) for row in rows("sft") + rows("heldout")) <= 288
    pairs = rows("preference") + rows("preference_heldout")
    assert max(length(row, row[side]) for row in pairs for side in ("chosen", "rejected")) <= 440


def test_base_samples_keep_their_tokens(tokenizer: Any) -> None:
    for row in rows("base_samples"):
        ids = tokenizer.encode(row["text"], add_special_tokens=False)
        assert len(ids) == row["tokens"] <= 200
        assert tokenizer.decode(ids) == row["text"]
        assert not set(ids[:-1]) & {0, 1, 2}


def test_sampling_follows_the_model() -> None:
    """First tokens of many samples against the model's own distribution: chi-squared on the common ones."""
    import torch
    from transformers import AutoModelForCausalLM

    count = 4000
    drawn = Counter(ids[0] for ids in sampling.sample_ids(DEMO / "base", count=count, length=1, seed="test"))
    model = AutoModelForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float64)
    with torch.no_grad():
        expected = model(torch.tensor([[1]])).logits[0, -1].softmax(-1) * count
    common = [token for token, number in enumerate(expected.tolist()) if number >= 10]
    statistic = sum((drawn[token] - expected[token].item()) ** 2 / expected[token].item() for token in common)
    assert statistic < len(common) + 4 * (2 * len(common)) ** 0.5


def test_nothing_offensive_or_foreign() -> None:
    for name in ("sft", "heldout", "preference", "preference_heldout"):
        for row in rows(name):
            assert sources.usable(*(value for value in row.values() if isinstance(value, str)))
    assert not sources.usable("an </s> inside")
    assert not sources.usable("a \u65e5 inside")


@pytest.mark.slow
def test_the_script_makes_the_same_bytes(tmp_path: Path) -> None:
    if not (SHARED / "data" / "sft" / "mix.jsonl.gz").is_file():
        pytest.skip("the public data that the demo is cut from is not here")
    build_data.build(SHARED, tmp_path)
    made = sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file())
    assert made == sorted(
        file.relative_to(DEMO)
        for place in (DEMO / "NOTICE", *(DEMO / "base").iterdir(), *(DEMO / "data").iterdir())
        for file in [place]
    )
    for name in made:
        assert (tmp_path / name).read_bytes() == (DEMO / name).read_bytes(), name
