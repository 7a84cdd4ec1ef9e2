"""`untax status` of a folder in every state that a node can be in."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from untax.demo.demo import prepare
from untax.errors import UntaxError
from untax.run.events import Events
from untax.run.lock import folder_lock
from untax.run.status import folder_status, format_status
from untax.run.workers import STATE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare(tmp_path / "run")
    return tmp_path / "run"


def state(folder: Path, name: str) -> tuple[str, str]:
    node = next(node for node in folder_status(folder).nodes if node.name == name)
    return node.state, node.reason


def test_a_folder_that_was_never_run(folder: Path):
    status = folder_status(folder)
    assert status.counts() == {"due": 27}
    assert status.held_by is None
    assert status.totals()["wall_seconds"] is None
    assert state(folder, "sft") == ("due", "outputs/sft: not made yet")
    said = format_status(status)
    assert said.endswith("27 nodes: 27 due")


def test_running_failed_and_killed(folder: Path):
    events = Events(folder)
    events.write("run-started")
    events.write("node-started", node="sft", kind="train")
    events.write("node-started", node="dpo", kind="train")
    events.write("node-failed", node="dpo", kind="train", reason="ended with exit code 1")
    with folder_lock(folder / STATE / "lock"):
        (folder / STATE / "progress").mkdir()
        progress = {"step": 3, "steps": 9, "loss": 2.5, "tokens": 10, "tokens_per_second": 5.0}
        (folder / STATE / "progress/sft.json").write_text(json.dumps({**progress, "started": 0.0, "time": 1.0}))
        assert state(folder, "sft")[0] == "running"
        assert state(folder, "dpo") == ("failed", "ended with exit code 1")
        status = folder_status(folder)
        assert status.held_by is not None
        assert status.held_by.pid == os.getpid()
        said = format_status(status)
        assert "step 3/9" in said
        assert f"Run by process {os.getpid()}" in said
    assert state(folder, "sft")[0] == "due", "its runner is gone"
    assert "The last run was killed" in format_status(folder_status(folder))
    events.write("run-ended", status="failed")
    assert "killed" not in format_status(folder_status(folder))


def test_all_of_it_is_json(folder: Path):
    content = json.loads(json.dumps(folder_status(folder).content()))
    assert set(content) == {"folder", "held_by", "last_run", "ended", "nodes", "counts", "totals"}
    sft = next(node for node in content["nodes"] if node["name"] == "sft")
    assert sft["command"] == "axolotl train recipes/sft.yaml --launcher python"
    assert set(sft["usage"]) == {
        *("wall_seconds", "cpu_seconds", "gpu_seconds", "peak_memory", "gpu_peak_memory", "energy_joules"),
    }


def test_no_run_folder(tmp_path: Path):
    with pytest.raises(UntaxError, match=r"untax\.yaml"):
        folder_status(tmp_path)


def test_a_recipe_that_was_edited_and_not_expanded_since(folder: Path):
    content = yaml.safe_load((folder / "untax.yaml").read_text())
    content["arms"]["dtm"]["merge"] = ["average", "ties"]
    (folder / "untax.yaml").write_text(yaml.safe_dump(content))
    states = {node.name: node.reason for node in folder_status(folder).nodes}
    unwritten = {name: reason for name, reason in states.items() if "is not written yet" in reason}
    assert unwritten
    assert all("ties" in name for name in unwritten)
    assert states["sft"] == "outputs/sft: not made yet"


def test_failed_and_stopped_attempts_count_in_the_sum(folder: Path):
    events = Events(folder)
    for event, seconds in (("node-failed", 5.0), ("node-stopped", 2.0), ("node-ended", 10.0), ("node-failed", 1.5)):
        events.write("node-started", node="sft", kind="train")
        events.write(event, node="sft", kind="train", reason="x", wall_seconds=seconds, cpu_seconds=1, peak_memory=9)
    status = folder_status(folder)
    sft = next(node for node in status.nodes if node.name == "sft")
    assert sft.attempts == 4
    assert sft.spent == {"wall_seconds": 18.5, "cpu_seconds": 4}
    assert sft.usage["wall_seconds"] == 1.5, "of the last attempt, which failed"
    assert status.totals()["wall_seconds"] == 18.5
