"""Scores against a direct computation with torch, against plain lm_eval, and against themselves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import untax.demo
from untax.errors import UntaxError
from untax.evaluate import suites
from untax.evaluate.results import read_samples
from untax.evaluate.score import score
from untax.evaluate.suites.demo import documents
from untax.manifest import changed_outputs, digest_model, read_manifest

BASE = Path(untax.demo.__file__).parent / "base"
LIMIT = 25


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "base"
    score(str(BASE), "demo", results=folder, limit=LIMIT, device="cpu")
    return folder


@pytest.fixture(scope="module")
def exact() -> Any:
    """Context ids, continuation ids -> log-likelihood in float64, without batches and without lm-eval."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float64)

    def likelihood(context: list[int], continuation: list[int]) -> float:
        with torch.no_grad():
            logits = model(torch.tensor([context + continuation])).logits[0].log_softmax(-1)
        places = range(len(context) - 1, len(context) + len(continuation) - 1)
        return sum(logits[place, token].item() for place, token in zip(places, continuation, strict=True))

    return likelihood


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BASE)


def docs(file: str) -> list[dict[str, Any]]:
    return list(documents.rows(f"../../../demo/data/{file}.jsonl")["test"])


def answer(tokenizer: Any, exact: Any, row: dict[str, Any], text: str) -> tuple[float, int]:
    """As Axolotl trains: prompt with BOS, then the answer's own ids."""
    prompt = tokenizer.encode(documents.prompt(row) + "\n")
    ids = tokenizer.encode(text, add_special_tokens=False)
    return exact(prompt, ids), len(ids)


def test_gain_is_the_nll_of_responses(scored: Path, exact: Any, tokenizer: Any) -> None:
    samples = read_samples(scored, "demo")["untax_demo_gain"]
    assert len(samples) == LIMIT
    for sample, row in zip(samples, docs("heldout"), strict=False):
        likelihood, tokens = answer(tokenizer, exact, row, row["output"])
        assert sample["tokens"] == tokens
        assert sample["nll"] == pytest.approx(-likelihood, rel=1e-5, abs=1e-4)


def test_tax_is_the_nll_of_samples(scored: Path, exact: Any, tokenizer: Any) -> None:
    for sample, row in zip(read_samples(scored, "demo")["untax_demo_tax"], docs("base_samples"), strict=False):
        ids = tokenizer.encode(row["text"], add_special_tokens=False)
        assert sample["tokens"] == len(ids)
        assert sample["nll"] == pytest.approx(-exact([1], ids), rel=1e-5)


def test_preference_is_decided_per_token(scored: Path, exact: Any, tokenizer: Any) -> None:
    samples = read_samples(scored, "demo")["untax_demo_preference"]
    for sample, row in zip(samples, docs("preference_heldout"), strict=False):
        chosen, chosen_tokens = answer(tokenizer, exact, row, row["chosen"])
        rejected, rejected_tokens = answer(tokenizer, exact, row, row["rejected"])
        assert sample["acc"] == (chosen / chosen_tokens > rejected / rejected_tokens)
        assert sample["acc_sum"] == (chosen > rejected)


def test_the_json_is_lm_evals_and_tells_nothing_of_this_machine(scored: Path) -> None:
    text = (scored / "demo.json").read_text()
    found = json.loads(text)
    assert {"results", "configs", "versions", "n-shot", "n-samples", "config", "task_hashes"} <= set(found)
    assert str(BASE) not in text
    assert str(Path.home()) not in text
    assert " at 0x" not in text
    samples = read_samples(scored, "demo")["untax_demo_tax"]
    result = found["results"]["untax_demo_tax"]
    expected = sum(sample["nll"] for sample in samples) / sum(sample["tokens"] for sample in samples)
    assert result["nll_per_token,none"] == pytest.approx(expected)
    assert 0 < result["nll_per_token_stderr,none"] < 0.2


def test_the_manifest_comes_last_and_names_the_weights(scored: Path) -> None:
    manifest = read_manifest(scored, "demo.untax.json")
    assert manifest is not None
    assert manifest["what"] == "results"
    assert manifest["inputs"]["model"] == digest_model(BASE)
    assert manifest["inputs"]["limit"] == LIMIT
    assert sorted(manifest["outputs"]) == ["demo.json", "demo.samples.jsonl"]
    assert not changed_outputs(scored, manifest)


def test_scored_once(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in scored.iterdir()}
    said: list[str] = []
    monkeypatch.setattr("untax.evaluate.score._run", lambda *_: pytest.fail("scored again"))
    score(str(BASE), "demo", results=scored, limit=LIMIT, say=said.append)
    assert "already scored" in said[0]
    assert {file.name: file.read_bytes() for file in scored.iterdir()} == before


def test_scored_again_to_the_same_bytes(scored: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(scored, tmp_path / "copy"))
    (copy / "demo.samples.jsonl").write_text("")  # damaged, so the manifest no longer holds
    score(str(BASE), "demo", results=copy, limit=LIMIT, device="cpu")
    assert (copy / "demo.samples.jsonl").read_bytes() == (scored / "demo.samples.jsonl").read_bytes()
    first, second = (json.loads((folder / "demo.json").read_text()) for folder in (scored, copy))
    assert {**first, "date": 0} == {**second, "date": 0}


def test_plain_lm_eval_gives_the_same_numbers(scored: Path, tmp_path: Path) -> None:
    """From another folder, without untax: only --include_path."""
    command = [
        *(sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={BASE},add_bos_token=True"),
        *("--include_path", str(suites.suite_folder("demo")), "--tasks", "untax_demo", "--limit", str(LIMIT)),
        *("--device", "cpu", "--batch_size", "16", "--output_path", str(tmp_path / "out")),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=180)
    (file,) = (tmp_path / "out").rglob("results_*.json")
    theirs, ours = (json.loads(path.read_text()) for path in (file, scored / "demo.json"))
    assert theirs["task_hashes"] in ({}, ours["task_hashes"])
    compared = 0
    for task, metrics in ours["results"].items():
        for name, value in metrics.items():
            if isinstance(value, float) and not name.startswith("nll_per_token_stderr"):
                assert theirs["results"][task][name] == pytest.approx(value, rel=1e-6)
                compared += 1
    assert compared == 6


def test_limit_below_one(tmp_path: Path) -> None:
    for limit in (0, -3):
        with pytest.raises(UntaxError, match="at least 1"):
            score(str(BASE), "demo", results=tmp_path, limit=limit)
    assert not any(tmp_path.iterdir())


def test_unknown_device(tmp_path: Path) -> None:
    with pytest.raises(UntaxError, match="no device"):
        score(str(BASE), "demo", results=tmp_path, limit=1, device="gpu")


def test_missing_tensors_are_not_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = Path(shutil.copytree(BASE, tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UntaxError, match=r"model\.layers\.2\.mlp\.up_proj\.weight"):
        score(str(model), "demo", results=tmp_path / "results", limit=1, device="cpu")
    assert not (tmp_path / "results").exists()


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = Path(shutil.copytree(BASE, tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UntaxError, match="not finite"):
        score(str(model), "demo", results=tmp_path / "results", limit=1, device="cpu")
    assert not (tmp_path / "results").exists()


def test_no_tokenizer(tmp_path: Path) -> None:
    model = Path(shutil.copytree(BASE, tmp_path / "model"))
    for file in model.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UntaxError, match="okenizer"):
        score(str(model), "demo", results=tmp_path / "results", limit=1, device="cpu")
