"""kill -9 of a run and of its trainings, and all ways of telling a run to stop: it goes on to the same weights."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import re
import signal
import sys
import termios
import time
from pathlib import Path

import pytest

from untax.run.lock import PATIENCE_SECONDS, holder

from .fault_folder import (
    TRAININGS,
    UNTAX,
    as_undisturbed,
    completes,
    copy,
    dry_run,
    events,
    kill,
    make_fault_folder,
    manifest,
    process_of,
    processes,
    running,
    said,
    untax_run,
    wait_for,
    wait_until_gone,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux only")


def duration(folder: Path) -> float:
    return float(next(event for event in events(folder) if event["event"] == "run-ended")["wall_seconds"])


def a_training(folder: Path) -> tuple[str, int] | None:
    found = [(name, pid) for name in TRAININGS if (pid := process_of(folder, name)) is not None]
    return found[0] if found else None


def warm_process(folder: Path, runner: int) -> tuple[str, int] | None:
    for pid, command in processes(folder).items():
        with contextlib.suppress(OSError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if parent == runner and "warm_server" in command and "axolotl" in command:
                return "warm", pid
    return None


def strike(folder: Path, seconds: float, victim: str) -> str | None:
    """Run the folder and kill its runner, a training or the process that trainings are forked from, at a moment.

    Returns:
        What was hit; None if the run was over before, or went on as if nothing had been.
    """
    with running(folder) as runner:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and runner.poll() is None:
            time.sleep(0.02)
        if victim == "runner":
            runner.kill()
            assert runner.wait() in (-signal.SIGKILL, 0), said(folder)
            wait_until_gone(folder)
            return victim if runner.wait() else None
        find = {"training": lambda: a_training(folder), "warm process": lambda: warm_process(folder, runner.pid)}[
            victim
        ]
        found = wait_for(lambda: runner.poll() is not None or find(), victim)
        if runner.poll() is not None:
            assert runner.poll() == 0, said(folder)
            return None
        name, pid = found
        kill(pid)
        if runner.wait(1800) == 0:
            return None  # its work was done by then
        told = (
            "the warm process that it was forked from is gone"
            if name == "warm"
            else "the kernel did for want of memory"
        )
        assert told in said(folder), said(folder)
        assert name == "warm" or f"{name}: was killed by SIGKILL" in said(folder)
        return str(name)


def is_free(folder: Path) -> None:
    """The next runner may wait so long for what a dead one held."""
    wait_for(lambda: holder(folder / ".untax/lock") is None, "the folder is free", PATIENCE_SECONDS)


def kills(count: int, seed: int, undisturbed: Path, tmp_path: Path) -> None:
    """Kill run after run of a folder until it gets to its end, and begin another one, so many times."""
    moments = random.Random(seed)
    whole, folder, hits, folders = duration(undisturbed), None, 0, 0
    while hits < count or folder is not None:
        if folder is None:
            folder, folders = make_fault_folder(tmp_path / f"run-{folders}"), folders + 1
        if hits == count:
            completes(folder, undisturbed)
            return
        moment, victim = (
            moments.uniform(0, whole),
            moments.choice(["runner", "runner", "training", "training", "warm process"]),
        )
        hit = strike(folder, moment, victim)
        print(f"seed {seed}, kill {hits}: {victim} at {moment:.2f} s of {whole:.2f}: {hit or 'the run was over'}")
        hits += hit is not None
        is_free(folder)
        if hit is None:
            as_undisturbed(folder, undisturbed)
            folder = None


def test_three_kills_at_random_moments(undisturbed: Path, tmp_path: Path):
    kills(3, 1, undisturbed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4, 5])
def test_twenty_kills_at_random_moments(seed: int, undisturbed: Path, tmp_path: Path):
    kills(5, seed, undisturbed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
@pytest.mark.parametrize("victim", ["runner", "launcher"])
def test_what_a_launcher_started_ends_with_it(launcher: str, victim: str, undisturbed: Path, tmp_path: Path):
    """The trainings of GPUs: the launcher is the node's first process, and the training is a process below it."""
    folder = make_fault_folder(tmp_path / "run", launcher=launcher)
    with running(folder, "--only", "sft") as runner:
        wait_for(lambda: [*folder.glob("outputs/sft/checkpoint-*")], "a checkpoint")
        first = process_of(folder, "sft")
        assert first is not None
        assert len(processes(folder)) > 2, "runner, launcher and training"
        kill(runner.pid if victim == "runner" else first)
        assert runner.wait(60) == (-signal.SIGKILL if victim == "runner" else 2)
        wait_until_gone(folder)
    untax_run(folder, "--only", "sft")
    assert manifest(folder, "sft")["outputs"] == manifest(undisturbed, "sft")["outputs"]


STOPS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGHUP))],
)
def test_told_to_stop_while_it_trains(number: signal.Signals, undisturbed: Path, tmp_path: Path):
    folder = copy(undisturbed, tmp_path / "run", without=["sft", "cluster-0", "vanilla", "average"])
    with running(folder, "--on-finish", f'echo "$UNTAX_STATUS" > {tmp_path}/finish') as runner:
        wait_for(lambda: [*folder.glob("outputs/sft/checkpoint-*")], "a checkpoint")
        runner.send_signal(number)
        assert runner.wait(20) == STOPS[number], said(folder)
    wait_until_gone(folder)
    assert "Traceback" not in said(folder)
    assert (tmp_path / "finish").read_text() == "interrupted\n"
    last = [event for event in events(folder) if event["run"] == events(folder)[-1]["run"]]
    assert last[-1]["event"] == "run-ended"
    assert last[-1]["status"] == "interrupted"
    assert "sft" in [event.get("node") for event in last if event["event"] == "node-stopped"]
    assert not (folder / "outputs/sft/untax.json").exists()
    assert len(dry_run(folder)) >= 2
    completes(folder, undisturbed)


def at_work(folder: Path, node: str) -> int:
    return int(wait_for(lambda: process_of(folder, node), f"{node} is at work"))


def test_a_second_ctrl_c_while_it_stops(undisturbed: Path, tmp_path: Path):
    folder = copy(undisturbed, tmp_path / "run", without=["sft", "cluster-0"])
    with running(folder) as runner:
        os.kill(at_work(folder, "sft"), signal.SIGSTOP)  # so that it does not end when it is asked to
        runner.send_signal(signal.SIGINT)
        wait_for(lambda: "stopping " in said(folder), "it stops", 20)
        time.sleep(1)
        assert runner.poll() is None, "it waits for the commands"
        runner.send_signal(signal.SIGINT)
        assert runner.wait(5) == 130
    wait_until_gone(folder)
    assert "Traceback" not in said(folder)
    assert [event["event"] for event in events(folder)][-1] == "run-ended"
    assert not (folder / "outputs/sft/untax.json").exists()


def test_ctrl_c_leaves_the_terminal_as_it_was(undisturbed: Path, tmp_path: Path):
    folder = copy(undisturbed, tmp_path / "run", without=["sft", "cluster-0"])
    runner, terminal = in_terminal(folder)
    before = termios.tcgetattr(terminal)
    at_work(folder, "sft")
    os.write(terminal, b"\x03")
    shown = shown_until_end(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(runner, 0)[1]) == 130
    assert termios.tcgetattr(terminal) == before
    cursor = re.findall(r"\x1b\[\?25[hl]", shown)
    assert not cursor or cursor[-1].endswith("h"), "the cursor stays hidden"
    assert "Traceback" not in shown
    os.close(terminal)
    wait_until_gone(folder)


def test_a_terminal_that_goes_away(undisturbed: Path, tmp_path: Path):
    """SIGHUP, and from then on nothing can be written there."""
    folder = copy(undisturbed, tmp_path / "run", without=["sft", "cluster-0"])
    runner, terminal = in_terminal(folder)
    at_work(folder, "sft")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(runner, 0)[1]) == 129
    wait_until_gone(folder)
    assert {event["node"] for event in events(folder) if event["event"] == "node-stopped"} >= {"sft"}
    assert events(folder)[-1]["status"] == "interrupted"


def in_terminal(folder: Path) -> tuple[int, int]:
    """``untax run`` in a terminal of its own: (its process, the other end of the terminal)."""
    pid, terminal = pty.fork()
    if not pid:
        os.execv(UNTAX, [str(UNTAX), "run", str(folder)])
    return pid, terminal


def shown_until_end(terminal: int) -> str:
    shown = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux' way of saying that nobody is left at the other end.
            part = b""
        if not part:
            return shown.decode(errors="replace")
        shown += part
