"""Which inputs of a manifest still are what they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from untax.demo.demo import BUNDLE
from untax.errors import UntaxError
from untax.evaluate.score import TOKENIZER
from untax.evaluate.suites import suite_digest
from untax.manifest import NOT_READ, digest_file, digest_files, digest_model, write_manifest
from untax.recipes.graph import Node
from untax.run.digests import input_digest, stale_inputs
from untax.run.done import anew, unfinished, version_changes
from untax.run.yamls import read_yaml


@pytest.mark.parametrize("place", ["run", "outputs/run"])
def test_a_hub_base_is_no_thing_of_this_machine(tmp_path: Path, place: str):
    """Wherever the run folder lies, also below one that is called outputs."""
    folder = tmp_path / place
    folder.mkdir(parents=True)
    assert input_digest("base", {"base_model": "meta-llama/Llama-2-7b-hf"}, folder) is None
    assert input_digest("datasets/allenai/tulu-v2-sft-mixture", {}, folder) is None


def test_local_inputs_have_the_digests_of_their_content(tmp_path: Path):
    (tmp_path / "data.jsonl").write_text("{}\n")
    shutil.copytree(BUNDLE / "base", tmp_path / "base")
    assert input_digest("datasets/data.jsonl", {}, tmp_path) == digest_file(tmp_path / "data.jsonl")
    assert input_digest("base", {"base_model": "./base"}, tmp_path) == digest_model(tmp_path / "base")
    assert input_digest("./base", {}, tmp_path) == digest_model(tmp_path / "base")


def test_what_the_run_made_itself_is_missed(tmp_path: Path):
    assert input_digest("./outputs/sft", {}, tmp_path) == "missing"
    assert input_digest("base", {"base_model": "outputs/vanilla"}, tmp_path) == "missing"


def test_a_file_that_a_key_names_is_an_input(tmp_path: Path):
    (tmp_path / "f.safetensors").write_bytes(b"one")
    config = {"delta_ewc_fisher": "f.safetensors"}
    recorded = {"inputs": {"delta_ewc_fisher": digest_file(tmp_path / "f.safetensors")}}
    assert stale_inputs(recorded, config, tmp_path) == []
    (tmp_path / "f.safetensors").write_bytes(b"two")
    assert stale_inputs(recorded, config, tmp_path) == ["delta_ewc_fisher"]
    (tmp_path / "f.safetensors").unlink()
    assert stale_inputs(recorded, config, tmp_path) == ["delta_ewc_fisher"]


def test_stale_inputs_are_named(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    inputs = {"datasets/a.jsonl": digest_file(tmp_path / "a.jsonl"), "datasets/some/hub-set": "unknown"}
    assert stale_inputs({"inputs": inputs}, {}, tmp_path) == []
    (tmp_path / "a.jsonl").write_text('{"changed": 1}\n')
    assert stale_inputs({"inputs": inputs}, {}, tmp_path) == ["datasets/a.jsonl"]
    assert stale_inputs({}, {}, tmp_path) == []


@pytest.mark.parametrize("content", [b"a: [", b"- a\n", b"\xff\xfe", b"3: 3", b"datasets: 3.5"])
def test_a_broken_yaml_is_said_plainly(tmp_path: Path, content: bytes):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(UntaxError, match="YAML"):
        read_yaml(tmp_path / "x.yaml")


def test_a_folder_in_place_of_a_yaml(tmp_path: Path):
    with pytest.raises(UntaxError, match="Is a directory"):
        read_yaml(tmp_path)


def test_files_of_statistics_and_bases_that_were_not_read(tmp_path: Path):
    (tmp_path / "f.safetensors").write_bytes(b"one")
    recorded = {"inputs": {"f.safetensors": digest_file(tmp_path / "f.safetensors"), "base": NOT_READ}}
    (tmp_path / "base").mkdir()
    assert stale_inputs(recorded, {"base_model": "base"}, tmp_path) == []
    (tmp_path / "f.safetensors").write_bytes(b"two")
    assert stale_inputs(recorded, {"base_model": "base"}, tmp_path) == ["f.safetensors"]


def test_other_versions_of_scores_are_seen_and_scored_anew_only_if_asked_for(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, suite, results = Path("base"), "demo", Path("results/base")
    shutil.copytree(BUNDLE / "base", model)
    results.mkdir(parents=True)
    (results / "demo.json").write_text("{}")
    inputs = {
        "model": digest_model(model),
        "tokenizer": digest_files(model, TOKENIZER),
        "suite": suite_digest(suite),
        "limit": None,
    }
    write_manifest(results, what="results", outputs=["demo.json"], started=0.0, name="demo.untax.json", inputs=inputs)
    command = ("untax", "eval", "base", "--suite", suite)
    node = Node("score-base", "score", command, (str(results),), models=("base",))
    assert unfinished(node, tmp_path, suite, rerun_on_version=True) is None
    manifest = json.loads((results / "demo.untax.json").read_text())
    manifest["versions"]["lm_eval"] = "0.1"
    (results / "demo.untax.json").write_text(json.dumps(manifest))
    assert version_changes(node, tmp_path)["lm_eval"][0] == "0.1"
    assert unfinished(node, tmp_path, suite) is None
    assert "made with lm_eval 0.1" in str(unfinished(node, tmp_path, suite, rerun_on_version=True))
    assert anew(node, tmp_path, suite).command == (*command, "--force")  # else `untax eval` keeps what it finds
    (results / "demo.json").write_text("changed")
    assert anew(node, tmp_path, suite) == node
