"""What is wrong with a base before it is trained: its tokenizer, the tokens that are to be added, its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from untax.check.check import check_folder
from untax.check.findings import Finding
from untax.manifest import write_manifest
from untax.recipes.plan import plan
from untax.recipes.spec import read_spec

Make = Callable[..., Path]


def with_training(make: Make, base: str = "./base", suite: str | None = None, **keys: Any) -> Path:
    lora = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
    training = {**lora, "learning_rate": 0.001, "micro_batch_size": 2, "num_epochs": 1, "sequence_len": 256, **keys}
    recipe = {"base": base} | ({"suite": suite} if suite else {})
    return make(arms={"vanilla": {}}, training={"sft": training}, **recipe)


def found(folder: Path, state: str = "fail") -> list[Finding]:
    return [finding for finding in check_folder(folder, offline=True).findings if finding.state == state]


@pytest.mark.parametrize(
    ("keys", "key", "token"),
    [
        ({"special_tokens": {"pad_token": "<pad>"}}, "special_tokens.pad_token", "<pad>"),
        ({"special_tokens": {"eos_token": "<|im_end|>"}}, "special_tokens.eos_token", "<|im_end|>"),
        ({"tokens": ["</s>", "<new>"]}, "tokens", "<new>"),
    ],
)
def test_tokens_that_would_train_new_embeddings(run_folder: Make, keys: dict[str, Any], key: str, token: str) -> None:
    [finding] = found(with_training(run_folder, **keys))
    assert finding.where == f"recipes/sft.yaml: {key}"
    assert finding.text.startswith(f"'{token}' is not in the vocabulary of ./base; Axolotl would add it")
    assert "cannot be merged" in finding.text
    assert "such as </s> (its end-of-sequence token)" in finding.fix


def test_a_token_for_which_the_embedding_has_a_row_is_noted(run_folder: Make) -> None:
    folder = with_training(run_folder, special_tokens={"pad_token": "<pad>"})
    config = folder / "base" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 576}))
    assert not [finding for finding in found(folder) if "vocabulary" in finding.text]
    assert [finding.where for finding in found(folder, "note") if "vocabulary" in finding.text] == [
        "recipes/sft.yaml: special_tokens.pad_token"
    ]


def test_cut_off_weights(run_folder: Make) -> None:
    folder = with_training(run_folder)
    weights = folder / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    [finding] = found(folder)
    assert (finding.where, "cut off" in finding.text, bool(finding.fix)) == ("base/model.safetensors", True, True)


def test_missing_shard(run_folder: Make) -> None:
    folder = with_training(run_folder)
    base = folder / "base"
    (base / "model.safetensors").rename(base / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    [finding] = found(folder)
    assert "model-00002-of-00002.safetensors is missing" in finding.text


def test_no_weights(run_folder: Make) -> None:
    folder = with_training(run_folder)
    (folder / "base" / "model.safetensors").unlink()
    [finding] = found(folder)
    assert "has no weights" in finding.text


def test_no_tokenizer_files(run_folder: Make) -> None:
    folder = with_training(run_folder)
    for file in (folder / "base").glob("tokenizer*"):
        file.unlink()
    [finding] = found(folder)
    assert finding.text.startswith("./base has no tokenizer files")
    assert "tokenizer_config" in finding.fix


def test_a_missing_base_is_told_once_and_is_no_hub_id(run_folder: Make) -> None:
    folder = with_training(run_folder)
    shutil.rmtree(folder / "base")
    report = check_folder(folder, offline=True)
    told = [finding for finding in report.findings if "./base" in f"{finding.where} {finding.text} {finding.fix}"]
    assert [(finding.state, finding.text) for finding in told] == [("fail", "there is no ./base")]


def test_a_missing_dataset_is_told_once(run_folder: Make) -> None:
    folder = with_training(run_folder)
    (folder / "sft.jsonl").unlink()
    assert [finding.text for finding in found(folder)] == ["there is no sft.jsonl"]


def test_a_run_that_was_scored_and_whose_base_is_gone(run_folder: Make, tmp_path: Path, base_model: Path) -> None:
    """A relative path that leads nowhere is reported, and is not asked of the hub's cache."""
    shutil.copytree(base_model, tmp_path / "basex")
    folder = with_training(run_folder, base="../basex", suite="demo")
    results = folder / next(
        node.outputs[0] for node in plan(read_spec(folder / "untax.yaml")).nodes if node.name == "score-base"
    )
    results.mkdir(parents=True)
    (results / "demo.json").write_text("{}")
    write_manifest(results, what="results", outputs=["demo.json"], started=0.0, name="demo.untax.json", inputs={})
    shutil.rmtree(tmp_path / "basex")
    report = check_folder(folder, offline=True)
    failures = [finding.text for finding in report.findings if finding.state == "fail"]
    assert failures == ["there is no ../basex"]
    assert "There is no model folder ../basex" in dict(report.due)["score-base"]
