"""Lengths against the rows that Axolotl itself prepares for a training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from toys import DPO_CHANGES, Workspace, preference_rows, sft_rows, write_jsonl
from untax.check.axolotl_rows import load_axolotl_tokenizer, tokenised
from untax.check.lengths import Part, measure
from untax.check.sample import take_samples
from untax.errors import UntaxError

CHAT = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"


def chats(count: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"Tell me about toy {index}. " * (index % 3 + 1)},
                {"role": "assistant", "content": f"Toy {index} is red."},
            ]
        }
        for index in range(count)
    ]


def looked_at(config: Path, rows: int = 1000) -> list[Any]:
    keys = yaml.safe_load(config.read_text())
    tokenizer = load_axolotl_tokenizer(keys, keys["base_model"])
    found = []
    for entry in keys["datasets"]:
        for sample in take_samples(entry, keys, rows):
            found += tokenised(sample.rows, sample.numbers, keys, sample.entry, tokenizer)
    return found


def prepared_rows(folder: Path) -> Any:
    from datasets import load_from_disk

    return load_from_disk(str(next((folder / "prepared").rglob("dataset_info.json")).parent))


CASES: dict[str, dict[str, Any]] = {
    "alpaca": {},
    "on inputs": {"train_on_inputs": True},
    "own fields": {
        "datasets": [
            {
                "path": "sft.jsonl",
                "type": {"field_instruction": "instruction", "field_output": "output", "format": "Q {instruction} A "},
            }
        ]
    },
    "chat template": {
        "datasets": [{"path": "chats.jsonl", "type": "chat_template", "field_messages": "messages"}],
        "chat_template": "jinja",
        "chat_template_jinja": CHAT,
    },
    "completion": {"datasets": [{"path": "texts.jsonl", "type": "completion", "field": "text"}], "sequence_len": 32},
    "two": {"datasets": [{"path": "sft.jsonl", "type": "alpaca"}, {"path": "texts.jsonl", "type": "completion"}]},
}


@pytest.mark.parametrize("case", CASES)
def test_sft(case: str, workspace: Workspace, axolotl_preprocess: Callable[[Path], None]) -> None:
    write_jsonl(workspace.folder / "chats.jsonl", chats(12))
    write_jsonl(workspace.folder / "texts.jsonl", [{"text": "A cat sat. " * (index + 1)} for index in range(12)])
    config = workspace.config(plugins=None, **CASES[case])
    axolotl_preprocess(config)
    found = looked_at(config)
    made = prepared_rows(workspace.folder)
    starts = [next((i for i, label in enumerate(row["labels"]) if label != -100), len(row["labels"])) for row in made]
    expected = sorted((len(row["input_ids"]), start) for row, start in zip(made, starts, strict=True))
    assert sorted((row.length, row.start) for row in found) == expected


def test_long_rows_are_seen_as_long_as_they_are(
    workspace: Workspace, axolotl_preprocess: Callable[[Path], None]
) -> None:
    rows = [*sft_rows(4), {"instruction": "Go on. " * 100, "input": "", "output": "Yes."}]
    write_jsonl(workspace.folder / "sft.jsonl", rows)
    config = workspace.config(plugins=None, sequence_len=200)
    axolotl_preprocess(config)
    found = looked_at(config)
    lengths = measure([Part(found, 1.0)], limit=200, strategy="drop")
    assert (lengths.rows, lengths.kept) == (5, len(prepared_rows(workspace.folder))) == (5, 4)
    assert lengths.longest > 400
    assert lengths.too_long == lengths.left_out == 0.2


@pytest.mark.parametrize("strategy", ["drop", "truncate"])
@pytest.mark.parametrize("method", ["dpo", "kto", "orpo"])
def test_preference(
    method: str, strategy: str, workspace: Workspace, axolotl_preprocess: Callable[[Path], None]
) -> None:
    """What Axolotl leaves out: rows that are too long, or, when it cuts them, those without room for an answer."""
    rows = [*preference_rows(6), {**preference_rows(1)[0], "chosen": "Yes. " * 80}]
    rows.append({**preference_rows(1)[0], "prompt": "Is it so? " * 80})
    write_jsonl(workspace.folder / "preference.jsonl", rows)
    changes: dict[str, Any] = dict(DPO_CHANGES)
    if method == "kto":
        changes["remove_unused_columns"] = False
        write_jsonl(
            workspace.folder / "preference.jsonl",
            [
                {"prompt": row["prompt"], "completion": row["chosen"], "label": index % 2 == 0}
                for index, row in enumerate(rows)
            ],
        )
        changes["datasets"] = [
            {"path": "preference.jsonl", "type": {"field_prompt": "prompt", "field_completion": "completion"}}
        ]
    if method == "orpo":
        write_jsonl(
            workspace.folder / "preference.jsonl",
            [
                {
                    name: [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[name]}]
                    for name in ("chosen", "rejected")
                }
                | {"prompt": row["prompt"]}
                for row in rows
            ],
        )
        changes["datasets"] = [{"path": "preference.jsonl", "type": "chat_template.argilla"}]
        changes |= {"chat_template": "jinja", "chat_template_jinja": CHAT}
    config = workspace.config(
        **{**changes, "plugins": None, "rl": method, "sequence_len": 128, "excess_length_strategy": strategy}
    )
    axolotl_preprocess(config)
    found = looked_at(config)
    lengths = measure([Part(found, 1.0)], limit=128, strategy=strategy, preference=True)
    assert lengths.kept == len(prepared_rows(workspace.folder)) == (6 if strategy == "drop" else 7)
    assert lengths.too_long == 0.25


def test_unreadable_row_is_named(workspace: Workspace) -> None:
    bad = chats(6)
    bad[4]["messages"][1].pop("content")
    write_jsonl(workspace.folder / "chats.jsonl", bad)
    config = workspace.config(**CASES["chat template"])
    with pytest.raises(UntaxError) as caught:
        looked_at(config)
    assert "row 4 of chats.jsonl" in str(caught.value)


def test_tokenizer_that_is_none(tmp_path: Path, base_model: Path) -> None:
    (tmp_path / "config.json").write_text((base_model / "config.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(UntaxError, match="tokenizer cannot be loaded"):
        load_axolotl_tokenizer({}, str(tmp_path))


def test_sample_is_the_same_each_time_and_has_the_first_rows(workspace: Workspace) -> None:
    write_jsonl(workspace.folder / "sft.jsonl", sft_rows(200))
    entry = {"path": "sft.jsonl", "type": "alpaca"}
    one, again = (take_samples(entry, {}, 50)[0] for _ in range(2))
    assert one.numbers == again.numbers == sorted(set(one.numbers))
    assert (len(one.numbers), one.numbers[:10], one.total) == (50, list(range(10)), 200)
    assert {number: row["output"] for number, row in one.by_number().items()} == {
        number: sft_rows(200)[number]["output"] for number in one.numbers
    }


def test_first_turns(workspace: Workspace) -> None:
    """Dialogues are looked at as they are trained on; what is not cut has no turn."""
    rows: list[dict[str, Any]] = chats(8)
    rows[2]["messages"].pop()
    write_jsonl(workspace.folder / "chats.jsonl", rows)
    sample = take_samples({"path": "chats.jsonl", "type": "alpaca"}, {"disperse_first_turn": True}, 100)[0]
    assert (sample.without_turn, sample.looked_at, len(sample.numbers)) == (1, 8, 7)
    assert set(sample.rows.column_names) == {"instruction", "input", "output"}
    assert sample.numbers == [0, 1, 3, 4, 5, 6, 7]
