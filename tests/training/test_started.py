"""One training to a folder, and no checkpoints of another recipe."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from untax.errors import UntaxError
from untax.training import started
from untax.training.asked import Asked
from untax.training.record import TrainingRecord
from untax.training.started import claim, is_claimed, release, started_with

INPUTS = {"datasets/sft.jsonl": "1" * 64}
KEYS = {"datasets": [{"path": "sft.jsonl"}], "output_dir": "out", "learning_rate": 0.1}
ASKED = Asked(KEYS, INPUTS)
OTHER = """
import sys, time
from pathlib import Path
from untax.training.asked import Asked
from untax.training.started import claim
claim(Path(sys.argv[1]), config="a", asked=Asked({}), resumes=False)
print("claimed", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def released(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(started, "PATIENCE_SECONDS", 0.3)
    release()
    yield
    release()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def other(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has claimed the folder."""
    process = subprocess.Popen([sys.executable, "-c", OTHER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_until_the_first_is_gone(folder: Path, other: subprocess.Popen[str]) -> None:
    assert is_claimed(folder)
    with pytest.raises(UntaxError, match=str(other.pid)) as error:
        claim(folder, config="b", asked=Asked({}), resumes=False)
    assert error.value.where == str(folder)
    assert error.value.fix
    assert started_with(folder) == noted("a")
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert not is_claimed(folder)
    claim(folder, config="b", asked=Asked({}), resumes=False)
    assert is_claimed(folder)
    assert started_with(folder) == noted("b")


def noted(config: str, asked: Asked | None = None) -> dict[str, object]:
    keys, inputs = (asked.keys, asked.inputs) if asked else ({}, {})
    return {"config": config, "keys": keys, "inputs": inputs, "trained_on": None}


def test_asking_makes_nothing(folder: Path) -> None:
    assert not is_claimed(folder)
    assert started_with(folder) is None
    assert not folder.exists()
    folder.mkdir()
    assert not is_claimed(folder)
    assert not list(folder.iterdir())


def test_a_process_may_claim_again_and_release(folder: Path) -> None:
    for _ in range(2):
        claim(folder, config="a", asked=ASKED, resumes=True)
    assert is_claimed(folder)
    release()
    assert not is_claimed(folder)


def test_own_checkpoints_are_resumed(folder: Path) -> None:
    claim(folder, config="a", asked=ASKED, resumes=True)
    (folder / "checkpoint-2").mkdir()
    claim(folder, config="a", asked=ASKED, resumes=True)
    assert started_with(folder) == noted("a", ASKED)


@pytest.mark.parametrize(
    ("keys", "inputs"),
    [
        ({**KEYS, "output_dir": "elsewhere", "dataset_prepared_path": "x"}, INPUTS),
        ({**KEYS, "datasets": [{"path": "moved/sft.jsonl", "split": None}]}, {"datasets/moved/sft.jsonl": "1" * 64}),
        ({**KEYS, "learning_rate": "1e-1"}, INPUTS),
    ],
)
def test_checkpoints_of_the_same_content_are_resumed(folder: Path, keys: dict, inputs: dict) -> None:
    (folder / "checkpoint-2").mkdir(parents=True)
    (folder / started.STARTED_NAME).write_text(json.dumps({"config": "b", "keys": keys, "inputs": inputs}))
    claim(folder, config="a", asked=ASKED, resumes=True)
    assert started_with(folder) == noted("a", ASKED)


def test_checkpoints_that_an_older_version_noted_are_resumed_by_the_text(folder: Path) -> None:
    (folder / "checkpoint-2").mkdir(parents=True)
    (folder / started.STARTED_NAME).write_text(json.dumps({"config": "a", "inputs": INPUTS}))
    claim(folder, config="a", asked=ASKED, resumes=True)
    assert started_with(folder) == noted("a", ASKED)


@pytest.mark.parametrize(
    "before",
    [
        *(None, "{", "[]"),
        json.dumps({"config": "b", "inputs": INPUTS}),
        json.dumps({"config": "a", "inputs": {"datasets/sft.jsonl": "2" * 64}}),
        json.dumps({"config": "a", "keys": {**KEYS, "learning_rate": 0.2}, "inputs": INPUTS}),
        json.dumps({"config": "a", "keys": KEYS, "inputs": {"datasets/sft.jsonl": "2" * 64}}),
    ],
)
def test_other_checkpoints_are_refused_and_kept(folder: Path, before: str | None) -> None:
    (folder / "checkpoint-2").mkdir(parents=True)
    if before is not None:
        (folder / started.STARTED_NAME).write_text(before)
    with pytest.raises(UntaxError, match="belong to another recipe") as error:
        claim(folder, config="a", asked=ASKED, resumes=True)
    assert error.value.fix
    assert not is_claimed(folder)
    assert (folder / "checkpoint-2").exists()
    assert (before is None) == (not (folder / started.STARTED_NAME).exists())
    claim(folder, config="a", asked=ASKED, resumes=False)
    assert started_with(folder) == noted("a", ASKED)


def test_the_commit_of_the_revision_that_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants
    from axolotl.utils.dict import DictDefault

    place = tmp_path / "hub/models--org--base"
    (place / "refs").mkdir(parents=True)
    for revision, commit in (("main", "a" * 40), ("dev", "b" * 40)):
        (place / "refs" / revision).write_text(commit)
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "snapshots" / commit / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for revision, commit in ((None, "a" * 40), ("dev", "b" * 40)):
        out = tmp_path / f"out-{revision}"
        out.mkdir()
        save_file({"x": np.ones(1, np.float32)}, out / "adapter_model.safetensors")
        cfg = {"base_model": "org/base", "revision_of_model": revision, "output_dir": str(out), "adapter": "lora"}
        TrainingRecord().write(DictDefault({**cfg, "seed": 1}))
        assert json.loads((out / "untax.json").read_text())["inputs"]["base"] == f"hub:org/base@{commit}"
