"""A full disk, too little memory, two runners, a clock that goes backwards, a folder that moves, a node that fails."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from untax.run.events import this_host

from .fault_folder import (
    MODELS,
    TRAININGS,
    UNTAX,
    as_undisturbed,
    completes,
    copy,
    dry_run,
    events,
    log_of,
    make_fault_folder,
    manifest,
    process_of,
    processes,
    running,
    said,
    untax_run,
    wait_for,
    wait_until_gone,
    weights,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="disks and memory are limited by Linux' means")


def mount(place: Path, *arguments: str) -> None:
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *arguments, place], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty folder that is a disk of 24 MiB."""
    place = tmp_path / "disk"
    mount(place, "-t", "tmpfs", "-o", "size=24m", "none")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path, *, leaving: int) -> Path:
    """Take a disk's space but for so many bytes; returns the file that does."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):  # Full, since others write there too.
        while (space := os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - leaving) > 0:
            file.write(bytes(min(space, 1 << 16)))
    return ballast


FULL = "the disk is full: free some space, then run the same command again"


def test_a_disk_that_is_full_when_models_are_merged(undisturbed: Path, small_disk: Path):
    folder = copy(undisturbed, small_disk, without=MODELS)
    ballast = fill(small_disk, leaving=0)
    assert "No space left" in untax_run(folder, code=2)
    ballast.unlink()
    ballast = fill(small_disk, leaving=600_000)  # a model has a megabyte
    text = untax_run(folder, code=2)
    for name in MODELS:
        assert f"{name}: ended with exit code 2 ({FULL})" in text
    assert not any((folder / "outputs" / name).exists() for name in MODELS)
    assert len(dry_run(folder)) == 2
    assert processes(folder) == {}
    ballast.unlink()
    ballast = fill(small_disk, leaving=1_300_000)  # seen to be enough for one, so that it runs full beneath them
    with running(folder) as runner:
        assert runner.wait(300) == 2, said(folder)
    assert f"({FULL})" in said(folder)
    ballast.unlink()
    completes(folder, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("leaving", [60_000, 1_500_000])
def test_a_disk_that_becomes_full_while_it_trains(leaving: int, undisturbed: Path, small_disk: Path):
    """In the tokenised data and the log, or in a checkpoint."""
    folder = copy(undisturbed, small_disk, without=["sft", "cluster-1"])
    shutil.rmtree(folder / "outputs/prepared")
    ballast = fill(small_disk, leaving=leaving)
    text = untax_run(folder, code=2)
    assert f"({FULL})" in text
    assert "average" in "".join(dry_run(folder))
    ballast.unlink()
    completes(folder, undisturbed)
    assert events(folder)[-1]["status"] == "done"


@pytest.mark.slow
def test_a_disk_that_is_full_now_and_then(undisturbed: Path, small_disk: Path):
    """Whatever is being written then: outputs, logs, the record, the progress."""
    folder = copy(undisturbed, small_disk, without=["cluster-0", "cluster-1", "average"])
    with running(folder) as runner:
        wait_for(lambda: [*folder.glob("outputs/cluster-0/checkpoint-*")], "a checkpoint")
        ballast = fill(small_disk, leaving=0)
        assert runner.wait(600) == 2, said(folder)
    assert f"cluster-0: ended with exit code 1 ({FULL})" in said(folder)
    assert "Traceback" not in re.sub(r"^ +\| .*$", "", said(folder), flags=re.MULTILINE)
    ballast.unlink()
    completes(folder, undisturbed)


def test_what_a_run_says_may_be_lost(undisturbed: Path, tmp_path: Path):
    folder = copy(undisturbed, tmp_path / "run", without=MODELS)
    with Path("/dev/full").open("w") as full:
        subprocess.run([UNTAX, "run", folder], stdout=full, stderr=full, stdin=subprocess.DEVNULL, check=False)
    as_undisturbed(folder, undisturbed)
    assert events(folder)[-1]["status"] == "done"


@pytest.fixture
def little_memory() -> Iterator[Path]:
    """A memory group of the kernel with next to nothing, into which a process can be put."""
    group = Path(f"/sys/fs/cgroup/memory/untax-tests-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(8 * 2**20))
    except OSError as error:
        pytest.skip(f"no memory group can be made here: {error}")
    yield group
    wait_for(lambda: not (group / "cgroup.procs").read_text(), "the group is empty", 20)
    group.rmdir()


@pytest.mark.slow
def test_a_training_without_memory(undisturbed: Path, tmp_path: Path, little_memory: Path):
    folder = copy(undisturbed, tmp_path / "run", without=["sft", "cluster-0", "vanilla", "average"])
    with running(folder) as runner:
        pid = wait_for(lambda: process_of(folder, "sft"), "sft is at work")
        (little_memory / "cgroup.procs").write_text(str(pid))
        assert runner.wait(600) == 2, said(folder)
    assert re.search(r"sft: was killed by SIGKILL \(.*the kernel did for want of memory", said(folder)), said(folder)
    assert "vanilla: not run, since it needs sft" in said(folder)
    assert (folder / "outputs/average/untax.json").exists(), "others go on"
    wait_until_gone(folder)
    completes(folder, undisturbed)


def test_two_runners_on_one_folder(undisturbed: Path, tmp_path: Path):
    folder = copy(undisturbed, tmp_path / "run", without=MODELS)
    (folder / ".untax/lock").write_bytes(b'{"pid": \xff\x00 garbage of a dead runner')
    with running(folder) as runner:
        pid = wait_for(lambda: process_of(folder, "vanilla"), "vanilla is at work")
        os.kill(pid, signal.SIGSTOP)
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
        second = subprocess.run([UNTAX, "run", folder], capture_output=True, text=True, check=False)
        after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
        os.kill(pid, signal.SIGCONT)
        assert second.returncode == 2
        found = re.search(r"process (\d+) on (\S+), since (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)", second.stderr)
        assert found is not None, second.stderr
        assert found.group(1, 2) == (str(runner.pid), this_host())
        assert {path for path in before if "average" not in str(path) and path.name != "events.jsonl"} <= {
            path for path, changed in after.items() if before.get(path) == changed
        }, "the second one left everything alone"
        assert runner.wait(300) == 0, said(folder)
    as_undisturbed(folder, undisturbed)


JUMPING = """
import time
_real, _begun = time.time, time.monotonic()
def _shifted():
    return _real() - (2 * 86400 if time.monotonic() - _begun > {after} else 0)
time.time = _shifted
time.time_ns = lambda: int(_shifted() * 1e9)
"""


@pytest.mark.parametrize("without", [MODELS, pytest.param((*TRAININGS, *MODELS), marks=pytest.mark.slow)])
def test_a_clock_that_goes_backwards(without: tuple[str, ...], undisturbed: Path, tmp_path: Path):
    """By two days, in each process a moment after it began."""
    folder = copy(undisturbed, tmp_path / "run", without=without)
    (tmp_path / "clock").mkdir()
    after = 0.5 if without == MODELS else 5
    (tmp_path / "clock/sitecustomize.py").write_text(JUMPING.format(after=after))
    untax_run(folder, "--no-warm", env={"PYTHONPATH": str(tmp_path / "clock")})
    as_undisturbed(folder, undisturbed)
    assert all(manifest(folder, name)["wall_seconds"] >= 0 for name in (*TRAININGS, *MODELS))
    assert min(event["wall_seconds"] for event in events(folder) if "wall_seconds" in event) >= 0


def test_files_from_the_future(undisturbed: Path, tmp_path: Path):
    folder = copy(undisturbed, tmp_path / "run", without=["vanilla"])
    tomorrow = time.time() + 86400
    for path in folder.rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    text = completes(folder, undisturbed)
    assert text.count("finished before") == 5
    model = folder / "outputs/vanilla/model.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    os.utime(model, (tomorrow, tomorrow))
    assert "model.safetensors was changed" in "".join(dry_run(folder)), "not taken for what it was"


@pytest.mark.slow
def test_a_folder_that_moves_in_the_middle(undisturbed: Path, tmp_path: Path):
    folder = make_fault_folder(tmp_path / "run")
    with running(folder) as runner:
        wait_for(lambda: (folder / "outputs/sft/checkpoint-12/trainer_state.json").exists(), "a checkpoint")
        runner.kill()
    wait_until_gone(folder)
    moved = folder.rename(tmp_path / "moved here")
    completes(moved, undisturbed)
    assert resumed_from_log(moved) >= 8


def resumed_from_log(folder: Path) -> int:
    return int(json.loads((folder / ".untax/progress/sft.json").read_text())["first_step"])


def test_a_finished_folder_elsewhere(undisturbed: Path, tmp_path: Path):
    """Nothing runs again there, and a place that cannot be written to can be looked at."""
    moved = copy(undisturbed, tmp_path / "first").rename(tmp_path / "another place")
    assert untax_run(moved).count("finished before") == 6
    archive = tmp_path / "archive"
    mount(archive, "-o", "bind,ro", str(moved))
    try:
        if os.access(archive / "untax.yaml", os.W_OK):  # `bind,ro` takes two steps with older kernels.
            subprocess.run(["mount", "-o", "remount,bind,ro", archive], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (archive / "note").write_text("")
        assert dry_run(archive) == []
        state = subprocess.run([UNTAX, "status", archive, "--json"], capture_output=True, text=True, check=True)
        assert json.loads(state.stdout)["counts"] == {"done": 6}
        assert subprocess.run([UNTAX, "status", archive], check=True, capture_output=True, text=True).stderr == ""
        assert "Read-only" in untax_run(archive, code=2)
        assert weights(archive) == weights(undisturbed)
    finally:
        subprocess.run(["umount", "-l", archive], check=True)


def break_sft(folder: Path) -> str:
    """As a user does who takes another model's layers; returns the YAML as it was."""
    path = folder / "recipes/sft.yaml"
    text = path.read_text()
    content = {**yaml.safe_load(text), "lora_target_modules": ["no_such_layer"], "lora_target_linear": False}
    path.write_text(yaml.safe_dump(content))
    return text


def test_a_failed_node_says_why_and_how_to_repeat_it(undisturbed: Path, tmp_path: Path):
    folder = copy(undisturbed, tmp_path / "run of mine", without=["sft", "vanilla", "average"])
    text = break_sft(folder)
    report = f'echo "$UNTAX_STATUS $UNTAX_FAILED $UNTAX_FOLDER" > "{tmp_path}/finish"'
    shown = untax_run(folder, "--on-finish", report, code=2)
    assert (tmp_path / "finish").read_text() == f"failed sft vanilla {folder}\n"
    assert "sft: ended with exit code 1" in shown
    assert re.search(r"^ +\| .*no_such_layer", shown, re.MULTILINE), "the last lines of its log"
    assert "vanilla: not run, since it needs sft" in shown
    assert (folder / "outputs/average/untax.json").exists(), "what does not need it is made"
    failed = next(event for event in events(folder) if event["event"] == "node-failed")
    assert failed["node"] == "sft"
    assert "exit code 1" in failed["reason"]
    (again,) = re.findall(r"^ +again: (.*)$", shown, re.MULTILINE)
    assert again == f"cd '{folder}' && axolotl train recipes/sft.yaml --launcher python"

    typed = {**os.environ, "PATH": f"{UNTAX.parent}:{os.environ['PATH']}"}
    (folder / "recipes/sft.yaml").write_text(text)
    done = subprocess.run(again, shell=True, env=typed, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = f'echo "$UNTAX_STATUS $UNTAX_FAILED" > "{tmp_path}/finish"'
    shown = untax_run(folder, "--on-finish", report)
    assert "sft: finished before" in shown
    assert (tmp_path / "finish").read_text() == "done \n"
    as_undisturbed(folder, undisturbed)


@pytest.mark.slow
def test_no_keep_going(undisturbed: Path, tmp_path: Path):
    folder = copy(undisturbed, tmp_path / "run", without=["sft", "cluster-0", "vanilla", "average"])
    text = break_sft(folder)
    shown = untax_run(folder, "--no-keep-going", "--jobs", "1", code=2)
    assert "cluster-0: not run after a failure" in shown
    assert not log_of(folder, "average").exists()
    (folder / "recipes/sft.yaml").write_text(text)
    completes(folder, undisturbed)
