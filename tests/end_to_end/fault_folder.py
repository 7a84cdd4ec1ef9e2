"""A small run folder whose trainings write checkpoints, and ways of looking at what a fault has left of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from untax.demo.demo import BUNDLE, demo_spec
from untax.recipes.spec import check_spec
from untax.recipes.write import write_run_folder

UNTAX = Path(sys.executable).parent / "untax"
SAVE_STEPS = 4
TRAININGS = ("sft", "cluster-0", "cluster-1")
MODELS = ("vanilla", "average")
NODES = 1 + len(TRAININGS) + len(MODELS)
OVER_SECONDS = 15.0
"""How long a dead runner's commands may take to end, on a busy machine."""
CHECKPOINTS = {
    "save_strategy": "steps",
    "save_steps": SAVE_STEPS,
    "save_total_limit": 3,
    "auto_resume_from_checkpoints": True,
    "logging_steps": 1,
}


def make_fault_folder(folder: Path, *, launcher: str | None = None) -> Path:
    """Vanilla SFT, here with an L1 penalty, and two clusters without; no scores. All write checkpoints."""
    content = demo_spec().model_dump(exclude_none=True, exclude={"suite", "preference"})
    content["arms"] = {"vanilla": {"scales": [1.0]}, "dtm": {"clusters": 2, "scales": [1.0]}}
    content["training"]["sft"] |= CHECKPOINTS
    if launcher:
        content["launcher"] = launcher
    write_run_folder(check_spec(content, where="the recipe for faults"), folder)
    path = folder / "recipes/sft.yaml"
    training = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**training, "plugins": ["untax.DeltaPenaltyPlugin"], "delta_l1": 0.001}))
    shutil.copytree(BUNDLE / "base", folder / "base")
    (folder / "data").mkdir()
    lines = (BUNDLE / "data/sft.jsonl").read_text().splitlines(keepends=True)
    (folder / "data/sft.jsonl").write_text("".join(lines[:64]))
    return folder


def manifest(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "outputs" / name / "untax.json").read_text())


def weights(folder: Path) -> dict[str, str]:
    """{adapter or model: digest of its weights}, from the manifests, each of which is held against the file."""
    found = {}
    for name in (*TRAININGS, *MODELS):
        outputs = manifest(folder, name)["outputs"]
        (file,) = (output for output in outputs if output.endswith(".safetensors"))
        found[name] = outputs[file]
        assert hashlib.sha256((folder / "outputs" / name / file).read_bytes()).hexdigest() == outputs[file], name
    return found


def events(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text(errors="replace").splitlines()
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def log_of(folder: Path, node: str) -> Path:
    return folder / ".untax/logs" / f"{node}.log"


def processes(folder: Path) -> dict[int, str]:
    """{process: its command line} of all that work in a run folder, and of its runners; none that is dead already."""
    found, folder = {}, folder.resolve()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            here = (entry / "cwd").readlink()
            command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if here == folder or (str(UNTAX) in command and str(folder) in command):
                found[int(entry.name)] = " ".join(command)
    return found


def process_of(folder: Path, node: str) -> int | None:
    """The first process of a node's command: the one that leads a session and whose output is the node's log."""
    log = log_of(folder.resolve(), node)
    for pid in processes(folder):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/fd/1").readlink() == log and os.getsid(pid) == pid:
                return pid
    return None


def wait_for(true: Callable[[], Any], what: str, seconds: float = 300.0) -> Any:
    """What is asked for again and again, once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"in {seconds:.0f} s it did not come to pass: {what}"
        time.sleep(0.02)
    return found


def wait_until_gone(folder: Path) -> None:
    """After a runner's death its commands end within seconds."""
    wait_for(lambda: not processes(folder), f"all of {folder} ends; {processes(folder)}", OVER_SECONDS)


@contextlib.contextmanager
def running(folder: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """``untax run`` at work, in a session of its own; what it says is in ``said(folder)``."""
    with (folder.parent / f"{folder.name}.said").open("w") as output:
        runner = subprocess.Popen(
            [UNTAX, "run", folder, *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
            env={**os.environ, **(env or {})},
        )
        try:
            yield runner
        finally:
            if runner.poll() is None:
                runner.kill()
            runner.wait()


def said(folder: Path) -> str:
    return (folder.parent / f"{folder.name}.said").read_text()


def untax_run(folder: Path, *options: str, env: dict[str, str] | None = None, code: int = 0) -> str:
    """``untax run`` until its end, which has to be this; returns what it said."""
    with running(folder, *options, env=env) as runner:
        ended = runner.wait(1800)
    assert ended == code, said(folder)
    assert "Traceback" not in re.sub(r"^ +\| .*$", "", said(folder), flags=re.MULTILINE), "but in the ends of logs"
    return said(folder)


def completes(folder: Path, undisturbed: Path, *, runs: int = 1) -> str:
    """``untax run`` until it is through; then all is as if nothing had been, and nothing is left to do."""
    for attempt in range(runs):
        with running(folder) as runner:
            if runner.wait(1800) == 0:
                break
        assert attempt + 1 < runs, said(folder)
    text = said(folder)
    as_undisturbed(folder, undisturbed)
    return text


def as_undisturbed(folder: Path, undisturbed: Path) -> None:
    """The same weights, nothing left to do, no process, and no half-made file beside what is made."""
    assert weights(folder) == weights(undisturbed)
    assert dry_run(folder) == []
    assert processes(folder) == {}
    assert sorted(path.name for path in (folder / "outputs").glob(".*.part")) == []


def dry_run(folder: Path) -> list[str]:
    """The lines of ``untax run --dry-run``, one for each node that would run."""
    done = subprocess.run([UNTAX, "run", folder, "--dry-run"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert re.search(r"of \d+ nodes would run", lines[-1])
    return [line for line in lines[:-1] if re.match(r"[\w-]+: (untax|axolotl) ", line)]


def copy(folder: Path, to: Path, *, without: Sequence[str] = ()) -> Path:
    """A copy of a run folder as if these nodes had never run."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    for name in without:
        shutil.rmtree(to / "outputs" / name)
        log_of(to, name).unlink()
    return to


def as_if_killed_at_the_end(folder: Path, training: str) -> list[Path]:
    """Leave of a finished training what it had before its last lines; returns its checkpoints, oldest first."""
    output = folder / "outputs" / training
    for name in ("untax.json", "adapter_model.safetensors"):
        (output / name).unlink()
    return sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def resumed_from(folder: Path, training: str) -> int:
    """The step from which a training went on the last time that it was run."""
    return int(json.loads((folder / f".untax/progress/{training}.json").read_text())["first_step"])


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
