"""Which columns types need, against Axolotl reading rows without them; answers that are not fit to train on."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from toys import DPO_CHANGES, Workspace, preference_rows, sft_rows, write_jsonl
from untax.check.axolotl_rows import load_axolotl_tokenizer, tokenised
from untax.check.columns import missing_columns, needed_columns, read_answers
from untax.check.data import answer_findings
from untax.check.sample import take_samples
from untax.errors import UntaxError

PAIR = {"prompt": "Is it?", "chosen": "Yes.", "rejected": "No."}
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
CASES: dict[str, tuple[str | None, Any, dict[str, Any]]] = {
    "alpaca": (None, "alpaca", {"instruction": "Hi", "output": "Hello"}),
    "alpaca_w_system.load_open_orca": (None, None, {"system_prompt": "", "question": "Hi", "response": "Hello"}),
    "context_qa.load_v2": (None, None, {"context": "A", "question": "Hi", "answer": "Hello"}),
    "summarizetldr": (None, None, {"article": "A", "summary": "B"}),
    "completion": (None, None, {"text": "Hi"}),
    "chat_template": (None, None, {"messages": MESSAGES}),
    "own fields": (
        None,
        {"field_instruction": "q", "field_output": "a", "format": "{instruction}"},
        {"q": "A", "a": "B"},
    ),
    "dpo, own fields": ("dpo", {"field_prompt": "prompt", "field_chosen": "chosen"}, PAIR),
    "chatml": ("dpo", None, {"prompt": "Hi", "chosen": "A", "rejected": "B"}),
    "chatml.intel": ("dpo", None, {"question": "Hi", "chosen": "A", "rejected": "B"}),
    "chat_template.default": (
        "dpo",
        None,
        {"messages": MESSAGES[:1], "chosen": MESSAGES[1], "rejected": MESSAGES[1]},
    ),
    "chat_template.argilla_chat": ("dpo", None, {"chosen": MESSAGES, "rejected": MESSAGES}),
    "kto, own fields": ("kto", {"field_prompt": "q"}, {"q": "Hi", "completion": "A", "label": True}),
    "chatml.intel, kto": ("kto", "chatml.intel", {"question": "Hi", "completion": "A", "label": True}),
    "chatml.argilla_chat, kto": ("kto", "chatml.argilla_chat", {"completion": MESSAGES, "label": True}),
    "chat_template.argilla, orpo": ("orpo", "chat_template.argilla", {"chosen": MESSAGES, "rejected": MESSAGES}),
}


@pytest.mark.parametrize("case", CASES)
def test_columns_that_are_needed(case: str, workspace: Workspace) -> None:
    """With them Axolotl reads the row; without any one of them it does not, or this check says so falsely."""
    rl, kind, row = CASES[case]
    entry = {"path": "rows.jsonl", "type": kind or case}
    needed = needed_columns(entry, rl)
    assert needed
    assert missing_columns(needed, row) == []
    assert readable(workspace, entry, rl, row)
    for names in needed:
        lacking = {key: value for key, value in row.items() if key not in names.split("|")} | {"other": "x"}
        assert missing_columns(needed, lacking) == [names]
        # Labels are read by the trainer.
        if names != "label":
            assert not readable(workspace, entry, rl, lacking)


def readable(workspace: Workspace, entry: dict[str, Any], rl: str | None, row: dict[str, Any]) -> bool:
    write_jsonl(workspace.folder / "rows.jsonl", [row, row])
    template = "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}"
    changes = (
        {"chat_template": "jinja", "chat_template_jinja": template} if "chat_template" in str(entry["type"]) else {}
    )
    keys = yaml.safe_load(workspace.config(rl=rl, **changes).read_text())
    tokenizer = load_axolotl_tokenizer(keys, keys["base_model"])
    try:
        sample = take_samples(entry, keys, 10)[0]
        found = tokenised(sample.rows, sample.numbers, keys, sample.entry, tokenizer)
    except UntaxError:
        return False
    return all(tokens.start < tokens.length for tokens in found)


def test_unknown_types_need_nothing_known() -> None:
    assert needed_columns({"type": "somebody.own"}, None) == []
    assert needed_columns({"type": "untax.kto_pairs?type=chatml"}, "kto") == []
    assert needed_columns({}, "dpo") == []


def test_fields_of_an_entry() -> None:
    assert needed_columns({"type": "chat_template", "field_messages": "turns"}, None) == ["turns"]
    assert needed_columns({"type": "completion", "field": "story"}, None) == ["story"]
    entry = {"type": "chat_template.default", "field_chosen": "good"}
    assert needed_columns(entry, "dpo") == ["messages", "good", "rejected"]


def test_empty_answers() -> None:
    rows = dict(enumerate(sft_rows(5)))
    rows[3] = {**rows[3], "output": "  "}
    rows[4] = {**rows[4], "output": None}
    answers = read_answers(rows, {"type": "alpaca"}, None)
    assert (answers.rows, answers.empty) == (5, [3, 4])
    [finding] = answer_findings(answers, "here")
    assert finding.state == "note"
    assert "2 of 5 rows (3, 4)" in finding.text


@pytest.mark.parametrize("dialogue", [False, True])
def test_pairs(dialogue: bool) -> None:
    rows: dict[int, Any] = dict(enumerate(preference_rows(4)))
    rows[1] = {**rows[1], "rejected": rows[1]["chosen"]}
    rows[2] = {**rows[2], "rejected": ""}
    entry: dict[str, Any] = DPO_CHANGES["datasets"][0]
    if dialogue:
        entry = {"type": "chat_template.argilla_chat"}
        for row in rows.values():
            row.update(
                {name: [MESSAGES[0], {"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
            )
    answers = read_answers(rows, entry, "dpo")
    assert (answers.empty, answers.equal) == ([2], [1])


def test_a_set_without_rejected_answers_fails() -> None:
    rows = {index: {"prompt": "a", "chosen": "b", "rejected": ""} for index in range(7)}
    [finding] = answer_findings(read_answers(rows, DPO_CHANGES["datasets"][0], "dpo"), "here")
    assert finding.state == "fail"
    assert "7 of 7 rows (0, 1, 2, 3, 4, ...)" in finding.text


def test_one_kind_of_label() -> None:
    rows = {index: {"prompt": "a", "completion": "b", "label": True} for index in range(3)}
    entry = {"type": {"field_prompt": "prompt"}}
    [finding] = answer_findings(read_answers(rows, entry, "kto"), "here")
    assert "all 3 rows are desirable" in finding.text
    rows[1]["label"] = False
    assert answer_findings(read_answers(rows, entry, "kto"), "here") == []
