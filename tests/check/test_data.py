"""Datasets that do not fit their type: what is said of them, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from toys import preference_rows, sft_rows, write_jsonl
from untax.check.check import check_folder
from untax.check.findings import Finding
from untax.data.pairs import pairs_type

Make = Callable[..., Path]


def found(folder: Path, state: str = "fail") -> list[Finding]:
    return [finding for finding in check_folder(folder, offline=True).findings if finding.state == state]


def individual(make: Make, of: str, **keys: Any) -> Path:
    return make(arms={"individual": {"of": [of]}}, **keys)


def test_first_turn_of_rows_without_its_columns(run_folder: Make) -> None:
    rows = [{"question": row["instruction"], "answer": row["output"]} for row in sft_rows(4)]
    [finding] = found(run_folder(arms={"vanilla": {}}, sft=rows, first_turn=True))
    assert "reads the columns instruction and output, or one of messages" in finding.text
    assert finding.text.endswith("sft.jsonl has question, answer")
    assert "--all-turns" in finding.fix


def test_first_turn_of_rows_with_empty_answers(run_folder: Make) -> None:
    rows = [{**row, "output": ""} for row in sft_rows(4)]
    [finding] = found(run_folder(arms={"vanilla": {}}, sft=rows, first_turn=True))
    assert "4 of 4 rows have no complete first turn (no instruction, or an empty answer)" in finding.text
    assert finding.fix
    noted = found(run_folder(arms={"vanilla": {}}, sft=[*rows, *sft_rows(4)], first_turn=True), "note")
    assert any("4 of 8 rows" in finding.text and finding.fix for finding in noted)


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_pairs_as_text_under_a_type_of_dialogues(run_folder: Make, method: str) -> None:
    entry = {"path": "preference.jsonl", "type": "chat_template.argilla_chat"}
    folder = individual(run_folder, method, axolotl={"chat_template": "chatml"})
    if method != "dpo":
        entry["type"] = pairs_type(method, entry)
    file = folder / "recipes" / f"{method}.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"datasets": [entry]}))
    [finding] = found(folder)
    assert "chosen and rejected are text, and type chat_template.argilla_chat reads lists" in finding.text
    assert 'chosen_format: "{chosen}", rejected_format: "{rejected}"' in finding.fix


@pytest.mark.parametrize("nothing", ["left out", None, "", []])
def test_some_rows_without_a_rejected_answer(run_folder: Make, nothing: Any) -> None:
    rows: list[dict[str, Any]] = [dict(row) for row in preference_rows(12)]
    for row in rows[::5]:
        row["rejected"] = nothing
        if nothing == "left out":
            del row["rejected"]
    folder = individual(run_folder, "dpo")
    if nothing == []:
        for row in rows:
            row["rejected"] = row["rejected"] and [{"role": "assistant", "content": row["rejected"]}]
            row["chosen"] = [{"role": "assistant", "content": row["chosen"]}]
    write_jsonl(folder / "preference.jsonl", rows)
    [finding] = found(folder)
    assert "3 of 12 rows (0, 5, 10) have no rejected answer" in finding.text
    assert finding.fix == "Remove these rows."


@pytest.mark.parametrize(
    ("method", "kind", "meant"),
    [("sft", "alpacca", "alpaca"), ("dpo", "chat_template.argila_chat", "chat_template.argilla_chat")],
)
def test_unknown_types(run_folder: Make, method: str, kind: str, meant: str) -> None:
    folder = individual(run_folder, method, axolotl={"chat_template": "chatml"})
    file = folder / "recipes" / f"{method}.yaml"
    keys = yaml.safe_load(file.read_text())
    keys["datasets"][0]["type"] = kind
    file.write_text(yaml.safe_dump(keys))
    [finding] = found(folder)
    assert finding.text == f"Axolotl has no type '{kind}' for this training"
    assert finding.fix == f"Did you mean '{meant}'?"
