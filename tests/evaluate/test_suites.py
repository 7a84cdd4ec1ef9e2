"""The demo suite's texts against Axolotl's own prompts and lm-eval's own token counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import untax.demo
from untax.errors import UntaxError
from untax.evaluate import suites
from untax.evaluate.suites.demo import documents

BASE = str(Path(untax.demo.__file__).parent / "base")
DATA = "../../../demo/data/"


@pytest.fixture(scope="module")
def lm() -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=BASE, add_bos_token=True, device="cpu")


def docs(file: str) -> list[dict[str, Any]]:
    return list(documents.rows(DATA + file)["test"])


def test_known_suites() -> None:
    assert "demo" in suites.suite_names()
    assert {task["task"] for task in suites.suite_tasks("demo")} == {
        "untax_demo_gain",
        "untax_demo_preference",
        "untax_demo_tax",
    }
    assert suites.suite_adds_bos("demo") is True


def test_unknown_suite_names_near_ones() -> None:
    with pytest.raises(UntaxError, match="demo"):
        suites.suite_folder("dmeo")


def test_digest_covers_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "suite"
    folder.mkdir()
    (folder / "a.yaml").write_text("task: a\ncustom_dataset: !function f.rows\ndataset_kwargs: {file: ../data.jsonl}\n")
    (tmp_path / "data.jsonl").write_text("{}\n")
    monkeypatch.setattr(suites, "suite_folder", lambda name: folder)
    before = suites.suite_digest("x")
    assert suites.suite_digest("x") == before
    (tmp_path / "data.jsonl").write_text('{"changed": 1}\n')
    assert suites.suite_digest("x") != before


def test_responses_are_tokenised_as_axolotl_trains_them(lm: Any) -> None:
    """The ids that lm-eval scores are Axolotl's labels; only EOS is left out."""
    from axolotl.prompt_tokenizers import AlpacaPromptTokenizingStrategy
    from axolotl.prompters import AlpacaPrompter

    strategy = AlpacaPromptTokenizingStrategy(AlpacaPrompter(), lm.tokenizer, False, 512)
    rows = docs("heldout.jsonl")
    rows += [{"instruction": "Add.", "input": "1 and 2", "output": "3", "tokens": 2}]  # with an input
    for row in rows:
        trained = strategy.tokenize_prompt(row)
        context, scored = lm._encode_pair(documents.prompt(row), documents.response(row)[0])
        newline = lm._encode_pair(documents.prompt(row), documents.response(row)[1])[1]
        assert context + scored == trained["input_ids"][:-1]
        labels = [label for label in trained["labels"] if label != -100]
        assert scored == newline + labels[:-1]
        assert labels[-1] == lm.tokenizer.eos_token_id
        assert row["tokens"] == len(scored) - len(newline) == len(labels) - 1


def test_pairs_carry_exact_token_counts(lm: Any) -> None:
    for row in docs("preference_heldout.jsonl"):
        chosen, rejected, newline = (lm._encode_pair(documents.prompt(row), text)[1] for text in documents.pair(row))
        assert row["chosen_tokens"] == len(chosen) - len(newline)
        assert row["rejected_tokens"] == len(rejected) - len(newline)


def test_texts_carry_exact_token_counts(lm: Any) -> None:
    for row in docs("base_samples.jsonl"):
        assert row["tokens"] == len(lm.tok_encode(row["text"], add_special_tokens=False))


def test_preference_is_per_token() -> None:
    doc = {"chosen_tokens": 10, "rejected_tokens": 2}
    # after a newline of -2: chosen -24 (then -10) over 10 tokens, rejected -4 over 2
    assert documents.preference(doc, [(-26.0, False), (-6.0, False), (-2.0, False)]) == {"acc": 0.0, "acc_sum": 0.0}
    assert documents.preference(doc, [(-12.0, False), (-6.0, False), (-2.0, False)]) == {"acc": 1.0, "acc_sum": 0.0}
    same = {"chosen_tokens": 2, "rejected_tokens": 2}
    assert documents.preference(same, [(-6.0, False)] * 3) == {"acc": 0.5, "acc_sum": 0.5}


def test_mean_is_weighted_by_tokens() -> None:
    assert documents.weighted_mean([(4.0, 1), (6.0, 4)]) == 2.0
