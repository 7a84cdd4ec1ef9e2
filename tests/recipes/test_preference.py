"""Preference methods: what their trainers are given, the loss that they start with, and what recipes refuse."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from toys import BASE, Workspace, fresh_axolotl, preference_rows, write_jsonl
from untax.data.pairs import FORMATS, STRATEGIES, is_strategy, pairs_type, strategy
from untax.errors import UntaxError
from untax.recipes.papers import values
from untax.recipes.preference import METHODS, entry_for, entry_problems, key_problems

ROWS = preference_rows(6)
ZEPHYR = (
    "{%- for message in messages -%}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}"
)
FORMS: dict[str, dict[str, Any]] = {
    "formats": {
        "path": "pairs.jsonl",
        "type": {
            "field_prompt": "prompt",
            "prompt_format": "100%: a+b & c.\n{prompt}\n\nAnswer:\n",
            "chosen_format": " {chosen}",
            "rejected_format": " {rejected}",
        },
    },
    "chat": {"path": "chat.jsonl", "type": "chat_template.argilla_chat"},
}
EXPECTED: dict[str, Callable[[dict[str, str]], tuple[str, str, str]]] = {
    "formats": lambda row: (
        f"100%: a+b & c.\n{row['prompt']}\n\nAnswer:\n",
        f" {row['chosen']}",
        f" {row['rejected']}",
    ),
    "chat": lambda row: (
        f"<|user|>\n{row['prompt']}</s>\n<|assistant|>\n",
        f"{row['chosen']}</s>",
        f"{row['rejected']}</s>",
    ),
}
METHODS_AND_FORMS = [(method, form) for method in METHODS for form in FORMS]


def dialogue(row: dict[str, str], answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[answer]}]


@pytest.fixture
def pairs(workspace: Workspace) -> Workspace:
    """The same pairs in two forms."""
    write_jsonl(Path("pairs.jsonl"), ROWS)
    chat = [{**row, **{key: dialogue(row, key) for key in ("chosen", "rejected")}, "score": 1} for row in ROWS]
    write_jsonl(Path("chat.jsonl"), chat)
    return workspace


@pytest.fixture
def in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` starts a process even for one worker."""
    from datasets import Dataset

    for name in ("map", "filter", "save_to_disk"):
        method = getattr(Dataset, name)
        monkeypatch.setattr(
            Dataset,
            name,
            lambda self, *args, _method=method, num_proc=None, **kwargs: _method(self, *args, **kwargs),
        )


def config(workspace: Workspace, method: str, form: str, **changes: Any) -> Path:
    keys = {key: value for key, value in values(METHODS[method].defaults).items() if key in METHODS[method].keys}
    template = {"chat_template": "jinja", "chat_template_jinja": ZEPHYR} if form == "chat" else {}
    entry = entry_for(method, FORMS[form])
    return workspace.config(
        **{
            "plugins": ["untax.ManifestPlugin"],
            "rl": METHODS[method].rl,
            "datasets": [entry],
            **template,
            **keys,
            **changes,
        }
    )


def texts(method: str, form: str) -> list[tuple[Any, ...]]:
    """What the trainer should be given, sorted."""
    found = []
    for prompt, chosen, rejected in map(EXPECTED[form], ROWS):
        if METHODS[method].paired:
            found.append((prompt, chosen, rejected))
        else:
            found += [(prompt, chosen, True), (prompt, rejected, False)]
    return sorted(found)


@pytest.mark.usefixtures("in_one_process")
@pytest.mark.parametrize(("method", "form"), METHODS_AND_FORMS)
def test_axolotls_loader_reads_the_same_texts_for_every_method(pairs: Workspace, method: str, form: str) -> None:
    from axolotl.cli.config import load_cfg
    from axolotl.loaders import load_tokenizer
    from axolotl.utils.data.rl import prepare_preference_datasets

    with fresh_axolotl():
        cfg = load_cfg(str(config(pairs, method, form)))
        rows, _ = prepare_preference_datasets(cfg, load_tokenizer(cfg))
    columns = ("prompt", "chosen", "rejected") if METHODS[method].paired else ("prompt", "completion", "label")
    assert sorted(tuple(row[column] for column in columns) for row in rows) == texts(method, form)
    if method in STRATEGIES:
        assert set(rows.column_names) == set(columns), "TRL would read chosen and rejected once more for KTO"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The rows and logs of the trainer that is run."""
    from transformers import Trainer

    found: dict[str, Any] = {}
    train = Trainer.train

    def remember(self: Any, *args: Any, **kwargs: Any) -> Any:
        found["rows"] = list(self.train_dataset)
        try:
            return train(self, *args, **kwargs)
        finally:
            found["logs"] = self.state.log_history

    monkeypatch.setattr(Trainer, "train", remember)
    return found


def answer_logps(form: str) -> list[dict[str, Any]]:
    """For each pair and answer: log-probabilities of its tokens under the base, and of all tokens but the first."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(BASE).double(), AutoTokenizer.from_pretrained(BASE)
    found = []
    for prompt, *answers in map(EXPECTED[form], ROWS):
        pair = {}
        for name, answer in zip(("chosen", "rejected"), answers, strict=True):
            ended = answer if answer.endswith("</s>") else answer + "</s>"
            ids, start = tokenizer(prompt + ended)["input_ids"], len(tokenizer(prompt)["input_ids"])
            with torch.no_grad():
                logps = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            of_tokens = logps[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
            pair[name] = {"ids": ids, "answer": of_tokens[start - 1 :], "all": of_tokens}
        found.append(pair)
    return found


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value))


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def first_loss(method: str, pairs: list[dict[str, Any]]) -> float:
    """The loss of all pairs in one batch under the base, from the papers' formulas."""
    average = [{name: float(one["answer"].mean()) for name, one in pair.items()} for pair in pairs]
    if method == "dpo":
        return math.log(2)
    if method == "kto":
        return mean([0.75 * 0.5, 0.5 * 0.5])  # rewards and KL are 0; the weights of the answers are below
    if method == "simpo":
        return mean([-log_sigmoid(2.0 * (one["chosen"] - one["rejected"]) - 1.0) for one in average])
    odds = [{name: math.exp(p) / (1 - math.exp(p)) for name, p in one.items()} for one in average]
    ratios = [log_sigmoid(math.log(one["chosen"] / one["rejected"])) for one in odds]
    tokens = [float(p) for pair in pairs for p in pair["chosen"]["all"]]
    return -mean(tokens) - 0.1 * mean(ratios)  # TRL has the NLL over the prompt too


@pytest.mark.usefixtures("in_one_process")
@pytest.mark.parametrize(("method", "form"), METHODS_AND_FORMS)
def test_the_method_that_is_asked_for_is_trained_on_these_tokens(
    pairs: Workspace, axolotl_train: Callable[[Path], None], trained: dict[str, Any], method: str, form: str
) -> None:
    weights = {"kto_desirable_weight": 0.75, "kto_undesirable_weight": 0.5} if method == "kto" else {}
    batch = len(ROWS) if METHODS[method].paired else 2 * len(ROWS)
    axolotl_train(config(pairs, method, form, micro_batch_size=batch, max_steps=1, **weights))
    expected = answer_logps(form)
    logged = trained["logs"][0]
    assert logged["loss"] == pytest.approx(first_loss(method, expected), rel=2e-4)
    sums = mean([float(pair["chosen"]["answer"].sum()) for pair in expected])
    averages = mean([float(pair["chosen"]["answer"].mean()) for pair in expected])
    wanted = averages if method in ("orpo", "simpo") else sums
    assert logged["logps/chosen"] == pytest.approx(wanted, rel=2e-4)
    assert sorted(sequences(trained["rows"])) == sorted(one["ids"] for pair in expected for one in pair.values())
    manifest = pairs.manifest()["training"]
    assert (manifest["kind"], manifest["rows"]) == (method, batch)


def sequences(rows: list[dict[str, Any]]) -> Iterator[list[int]]:
    """All token sequences that a trainer's rows stand for."""
    for row in rows:
        if "completion_ids" in row:
            yield row["prompt_ids"] + row["completion_ids"]
            continue
        for name in ("chosen", "rejected"):
            ids = f"{name}_input_ids"
            yield row[ids] if ids in row else row["prompt_ids"] + row[f"{name}_ids"]


@given(
    method=st.sampled_from(sorted(STRATEGIES)),
    formats=st.dictionaries(st.sampled_from(FORMATS), st.text(min_size=1), min_size=1),
)
def test_a_type_is_a_name_that_axolotl_can_split_at_its_last_dot(method: str, formats: dict[str, str]) -> None:
    written = pairs_type(method, {"path": "x", "type": formats})
    package, _, name = written.rpartition(".")
    assert package == "untax"
    assert is_strategy(name)
    assert dict(parse_qsl(name.partition("?")[2], keep_blank_values=True)) == formats
    assert written == yaml.safe_load(yaml.safe_dump(written))
    strategy(name)


@pytest.mark.parametrize("name", ["kto_pairs?typ=x", "orpo_pairs?prompt_format", "kto_pairs?type=a&prompt_format=b"])
def test_a_type_with_another_query_is_refused(name: str) -> None:
    with pytest.raises(UntaxError, match="A type of untax is wrong"):
        strategy(name)


def test_axolotl_finds_the_types_in_the_package() -> None:
    asked = "import untax; print(getattr(untax, 'kto_pairs?type=chatml%2Eargilla').__name__)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=60)
    assert done.stdout == "load\n", done.stderr[-500:]


def test_kto_refuses_pairs_that_stay_side_by_side() -> None:
    with pytest.raises(UntaxError, match="Without shuffling"):
        strategy("kto_pairs")({"shuffle_merged_datasets": False})
    strategy("orpo_pairs")({"shuffle_merged_datasets": False})


@pytest.mark.parametrize("form", FORMS)
def test_entries_of_pairs(form: str) -> None:
    entry = FORMS[form]
    for method in METHODS:
        made = entry_for(method, entry)
        assert made["path"] == entry["path"]
        assert (made == entry) == (method in ("dpo", "simpo"))
        assert entry_for(method, made) == made
        assert entry_problems(method, entry) == []
        assert entry_problems(method, made, own=True) == []


def test_finished_texts_need_a_type_for_kto_only() -> None:
    entry = {"path": "texts.jsonl"}
    assert [entry_for(method, entry).get("type") for method in METHODS] == [None, None, "untax.kto_pairs", None]


def test_fields_are_taken_along() -> None:
    entry = {"path": "x", "split": "train", "type": "chat_template.default", "field_messages": "question"}
    assert entry_for("kto", entry) == {
        "path": "x",
        "split": "train",
        "type": "untax.kto_pairs?type=chat_template%2Edefault&field_messages=question",
    }


KTO_ROWS = {"path": "x", "type": {"field_completion": "answer", "field_label": "good"}}


@pytest.mark.parametrize(
    ("method", "entry", "own", "said"),
    [
        ("orpo", FORMS["formats"], True, "dropped without a word, and the bare columns are trained on"),
        ("orpo", FORMS["chat"], True, "Axolotl has no chat_template.argilla_chat for orpo"),
        ("kto", FORMS["formats"], True, "it reads pairs"),
        ("kto", FORMS["chat"], True, "it reads pairs"),
        ("dpo", KTO_ROWS, False, "unknown key field_completion"),
        ("dpo", {"path": "x", "type": "chat_template.argilla"}, False, "is for ORPO alone"),
        ("kto", {"path": "x", "type": "untax.orpo_pairs"}, True, "is for orpo"),
        ("dpo", {"path": "x", "name": "en", "type": "chatml.argilla"}, False, "name is dropped without a word"),
        ("simpo", {"path": "x", "type": {"prompt_format": "Hello"}}, False, "prompt_format has no {prompt}"),
        ("orpo", {**FORMS["chat"], "roles": {"user": ["human"]}}, False, "roles is dropped without a word"),
    ],
)
def test_entries_that_would_train_something_else(method: str, entry: dict[str, Any], own: bool, said: str) -> None:
    assert any(said in problem for problem in entry_problems(method, entry, own=own))


@pytest.mark.parametrize(
    ("method", "entry"),
    [
        ("kto", KTO_ROWS),
        ("kto", {"path": "x"}),
        ("kto", {"path": "x", "type": "chatml.argilla"}),
        ("orpo", {"path": "x", "name": "en", "type": "chat_template.argilla"}),
        ("orpo", {"path": "x"}),
    ],
)
def test_entries_of_a_method_of_its_own(method: str, entry: dict[str, Any]) -> None:
    assert entry_problems(method, entry, own=True) == []


@pytest.mark.parametrize("method", METHODS)
def test_defaults_are_right_keys(method: str) -> None:
    from untax.recipes.papers import paft_preference

    refused = METHODS[method].refused
    shared = {key: value for key, value in values(paft_preference()).items() if key not in (*refused, "rl_beta")}
    assert key_problems(method, {**shared, **values(METHODS[method].defaults)}) == []


@pytest.mark.parametrize(
    ("method", "keys", "said"),
    [
        ("orpo", {"orpo_alpha": 0.1, "rl_beta": 0.01}, "rl_beta: it wins over orpo_alpha"),
        ("simpo", {"rl_beta": 2.0, "simpo_gamma": 1.0}, "cpo_alpha is missing"),
        ("simpo", {"rl_beta": 2.0, "cpo_alpha": 0.0}, "simpo_gamma is missing"),
        ("simpo", {"warmup_ratio": 0.1}, "warmup_ratio: Axolotl refuses it"),
        ("kto", {}, "remove_unused_columns"),
        ("kto", {"remove_unused_columns": False, "micro_batch_size": 1}, "micro_batch_size"),
        ("dpo", {"trl": {"beta": 0.5}}, "trl.beta"),
        ("dpo", {"sample_packing": True}, "sample_packing"),
    ],
)
def test_keys_that_would_train_something_else(method: str, keys: dict[str, Any], said: str) -> None:
    assert any(said in problem for problem in key_problems(method, keys))


def test_axolotl_refuses_what_is_said_to_be_refused(pairs: Workspace) -> None:
    """And takes every method's defaults."""
    from axolotl.cli.config import load_cfg

    for method, known in METHODS.items():
        with fresh_axolotl():
            load_cfg(str(config(pairs, method, "formats", **values(known.defaults))))
        for key in known.refused:
            with fresh_axolotl(), pytest.raises(ValueError, match=key):
                load_cfg(str(config(pairs, method, "formats", **{key: 0.1})))
