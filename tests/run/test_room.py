"""Clearing the way for what a node makes: nothing is lost, and nothing half-made is taken for whole."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from untax.errors import UntaxError
from untax.manifest import digest_file, write_manifest
from untax.run.room import make_room, resumes_from
from untax.training.asked import Asked


def as_training(node):
    return type(node)(**{**node.__dict__, "kind": "train"})


def aside(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob(".untax/replaced/**/*") if path.is_file())


def finished(out: Path, weights: str) -> Path:
    out.mkdir(parents=True)
    (out / weights).write_text("weights")
    write_manifest(out, what="model", outputs=[weights], started=time.time())
    return out


def test_trained_weights_are_set_aside_and_never_deleted(tmp_path, make_node):
    train, out = as_training(make_node("sft")), tmp_path / "outputs/sft"
    finished(out, "adapter_model.safetensors")
    make_room(train, tmp_path)
    out.mkdir()
    (out / "adapter_model.safetensors").write_text("made by another tool")
    make_room(train, tmp_path)
    assert not out.exists()
    assert [name for name in aside(tmp_path) if name.endswith(".safetensors")] == [
        ".untax/replaced/sft-1/adapter_model.safetensors",
        ".untax/replaced/sft-2/adapter_model.safetensors",
    ]


def test_leftovers_without_weights_are_removed(tmp_path, make_node):
    out = tmp_path / "outputs/sft"
    out.mkdir(parents=True)
    (out / "debug.log").write_text("begun")
    make_room(as_training(make_node("sft")), tmp_path)
    assert not out.exists()
    assert aside(tmp_path) == []


@pytest.mark.parametrize(
    "file", ["pytorch_model_fsdp_0/__0_0.distcp", "global_step10/mp_rank_00_model_states.pt", "pytorch_model.bin"]
)
def test_checkpoints_of_every_kind_are_weights(tmp_path, make_node, file):
    weights = tmp_path / "outputs/sft/checkpoint-10" / file
    weights.parent.mkdir(parents=True)
    weights.write_text("weights")
    make_room(as_training(make_node("sft")), tmp_path)
    assert aside(tmp_path) == [f".untax/replaced/sft-1/checkpoint-10/{file}"]


def test_weights_that_are_not_the_merges_own_are_set_aside_with_it(tmp_path, make_node):
    node, out = make_node("average"), tmp_path / "outputs/average"
    finished(out, "model.safetensors")
    (out / "model-q4.gguf").write_text("quantised by hand")
    make_room(node, tmp_path)
    assert ".untax/replaced/average-1/model-q4.gguf" in aside(tmp_path)


def test_a_merge_of_ours_is_removed_and_anything_else_is_set_aside(tmp_path, make_node):
    node, out = make_node("average"), tmp_path / "outputs/average"
    finished(out, "model.safetensors")
    make_room(node, tmp_path)
    assert not out.exists()
    assert aside(tmp_path) == []
    out.mkdir()
    (out / "my_notes.txt").write_text("mine")
    make_room(node, tmp_path)
    assert aside(tmp_path) == [".untax/replaced/average-1/my_notes.txt"]
    (tmp_path / "elsewhere").mkdir()
    out.symlink_to(tmp_path / "elsewhere")
    make_room(node, tmp_path)
    assert not out.exists()
    assert (tmp_path / "elsewhere").is_dir()


def test_checkpoints_are_continued_only_by_the_yaml_that_made_them(tmp_path, make_node):
    train, out = as_training(make_node("sft")), tmp_path / "outputs/sft"
    (out / "checkpoint-10").mkdir(parents=True)
    save_file({"weight": np.ones(3)}, out / "checkpoint-10/adapter_model.safetensors")
    (out / "checkpoint-10/trainer_state.json").write_text('{"global_step": 10}')
    shutil.copytree(out / "checkpoint-10", out / "checkpoint-20")
    (out / "checkpoint-20/trainer_state.json").write_text('{"global_st')
    (tmp_path / "configs/sft.yaml").write_text("name: sft\nauto_resume_from_checkpoints: true\n")
    begun = {"config": digest_file(tmp_path / "configs/sft.yaml"), "inputs": {}}
    (out / ".untax-started.json").write_text(json.dumps(begun))
    assert resumes_from(train, tmp_path) == out / "checkpoint-10"
    assert (out / "checkpoint-20").is_dir(), "looking changes nothing"
    assert make_room(train, tmp_path) == "goes on from checkpoint-10"
    assert (out / "checkpoint-10").is_dir()
    assert not (out / "checkpoint-20").exists()
    (tmp_path / "configs/sft.yaml").write_text("name: changed\nauto_resume_from_checkpoints: true\n")
    assert make_room(train, tmp_path) == "what was there is now in .untax/replaced/sft-1"
    assert not out.exists()
    assert ".untax/replaced/sft-1/checkpoint-10/adapter_model.safetensors" in aside(tmp_path)


def test_checkpoints_without_the_optimizer_are_not_continued(tmp_path, make_node):
    node, out = make_node("sft"), tmp_path / "outputs/sft"
    (out / "checkpoint-10").mkdir(parents=True)
    save_file({"weight": np.ones(3)}, out / "checkpoint-10/adapter_model.safetensors")
    (out / "checkpoint-10/trainer_state.json").write_text('{"global_step": 10}')
    (tmp_path / "configs/sft.yaml").write_text("save_only_model: true\nauto_resume_from_checkpoints: true\n")
    begun = {"config": digest_file(tmp_path / "configs/sft.yaml"), "inputs": {}}
    (out / ".untax-started.json").write_text(json.dumps(begun))
    make_room(as_training(node), tmp_path)
    assert ".untax/replaced/sft-1/checkpoint-10/adapter_model.safetensors" in aside(tmp_path)


def test_a_folder_that_another_process_trains_into_is_left_alone(tmp_path, make_node):
    from untax.training import started

    out = tmp_path / "outputs/sft"
    out.mkdir(parents=True)
    started.claim(out, config="digest", asked=Asked({}), resumes=False)
    try:
        with pytest.raises(UntaxError, match="training into this folder"):
            make_room(as_training(make_node("sft")), tmp_path)
    finally:
        started.release()
    assert out.is_dir()


def test_checkpoints_that_nothing_would_go_on_from_are_not_written_over(tmp_path, make_node):
    """Axolotl begins at step 0 without this key, into the same folders."""
    node, out = as_training(make_node("sft")), tmp_path / "outputs/sft"
    (out / "checkpoint-10").mkdir(parents=True)
    save_file({"weight": np.ones(3)}, out / "checkpoint-10/adapter_model.safetensors")
    (out / "checkpoint-10/trainer_state.json").write_text('{"global_step": 10}')
    begun = {"config": digest_file(tmp_path / "configs/sft.yaml"), "inputs": {}}
    (out / ".untax-started.json").write_text(json.dumps(begun))
    assert resumes_from(node, tmp_path) is None
    make_room(node, tmp_path)
    assert ".untax/replaced/sft-1/checkpoint-10/adapter_model.safetensors" in aside(tmp_path)


def test_a_merge_that_was_changed_by_hand_is_set_aside(tmp_path, make_node):
    node, out = make_node("average"), tmp_path / "outputs/average"
    finished(out, "model.safetensors")
    (out / "model.safetensors").write_text("edited")
    make_room(node, tmp_path)
    assert aside(tmp_path) == [".untax/replaced/average-1/model.safetensors", ".untax/replaced/average-1/untax.json"]
