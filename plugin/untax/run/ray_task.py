"""What happens on a machine of a Ray cluster: one node's command, started as on any machine and never left alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import untax
from untax.errors import UntaxError
from untax.recipes.graph import Node
from untax.run.process import LocalRunning, environment, start, stop
from untax.run.room import make_room
from untax.run.workers import STATE, Ended
from untax.training.started import is_claimed

MOST_ATTEMPTS = 4
"""How often a node is started in all when its worker or machine dies each time."""
POLL_SECONDS = 0.1
SHARED_SECONDS = 15.0
"""How long a file of another machine may take to show up: an NFS client believes what it knows for some seconds."""
CLAIM_SECONDS = 150.0
"""How long a lost machine's training may hold its folder. An NFS server takes its lock back after 90 seconds."""
DOWN_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Work:
    """A node as it is sent to a worker.

    Attributes:
        node: the fields of the node.
        folder: the run folder, an absolute path on a file system that all machines share.
        nonce: what the driver wrote into ``place_path``, to be found there.
        threads: of the command.
        variables: what the user has set for the tools in the driver's environment.
    """

    node: dict[str, Any]
    folder: str
    nonce: str
    threads: int
    variables: dict[str, str]


def place_path(folder: Path, name: str) -> Path:
    """The file in which the workers of a node say where they are, a line for each attempt after the driver's first."""
    return folder / STATE / "ray" / f"{name}.jsonl"


def run_node(version: str, work: Mapping[str, Any]) -> tuple[Ended, list[str]]:
    """Run a node's command to its end. This is the Ray task.

    Args:
        version: untax's, where the run was started.
        work: the fields of a ``Work``.

    Returns:
        Its end, and the files of its outputs as they are seen here, relative to the run folder.

    Raises:
        UntaxError: this machine cannot run it, or its workers died too often.
        KeyboardInterrupt: it was cancelled, and its processes are gone.
    """
    if version != untax.__version__:
        raise UntaxError(
            f"untax is {untax.__version__} here and {version} where the run was started.",
            where=f"{platform.node()}, {Path(untax.__file__).parent}",
            fix="Install one version on all machines of the cluster.",
        )
    sent = Work(**work)
    node, folder = Node(**sent.node), Path(sent.folder)
    attempt = _attempt(node, folder, sent.nonce)
    gpus = _gpus()
    line = {"attempt": attempt, "host": platform.node(), "pid": os.getpid(), "gpus": gpus}
    with place_path(folder, node.name).open("a", encoding="utf-8") as place:
        place.write(json.dumps(line) + "\n")
    with _cancellation() as cancelled:
        _await_claim(node, folder, cancelled)
        make_room(node, folder)
        variables = {**environment(sent.threads, gpus, cpu_only=not gpus), **sent.variables}
        ended = _attended(start(node, folder, variables=variables, gpus=gpus), cancelled)
        if cancelled or ended is None:
            raise KeyboardInterrupt
    return dataclasses.replace(ended, attempts=attempt), _made(node, folder)


def _gpus() -> tuple[str, ...]:
    import ray

    return tuple(map(str, ray.get_runtime_context().get_accelerator_ids().get("GPU", ())))


def _attempt(node: Node, folder: Path, nonce: str) -> int:
    """The number of this attempt, by what the driver and the workers before wrote into the folder.

    Raises:
        UntaxError: it is another folder, or none; or the node's workers died too often.
    """
    place = place_path(folder, node.name)
    deadline = time.monotonic() + SHARED_SECONDS
    while (lines := read_place(place))[:1] != [{"nonce": nonce}]:
        if time.monotonic() > deadline:
            raise UntaxError(
                "The run folder is not shared with this machine: what the runner wrote there is not seen here.",
                where=f"{platform.node()}: {place}",
                fix="Put the run folder on a file system that every machine of the cluster mounts at the same path.",
            )
        time.sleep(0.2)
    if len(lines) > MOST_ATTEMPTS:
        hosts = ", ".join(str(line["host"]) for line in lines[1:])
        raise UntaxError(
            f"The worker of node {node.name} died {len(lines) - 1} times, on {hosts}.",
            where=place,
            fix="Ray ends workers on a machine that runs out of memory: see its logs, and `untax check`.",
        )
    return len(lines)


def read_place(place: Path) -> list[dict[str, Any]]:
    """The lines of a place file; none while there is no such file, and without a line that is being written."""
    try:
        text = place.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _await_claim(node: Node, folder: Path, cancelled: list[int]) -> None:
    """Wait for the training of a lost worker: it may be alive for a moment, or on a machine that is cut off."""
    outputs = [folder / name for name in node.outputs] if node.kind == "train" else []
    deadline = time.monotonic() + CLAIM_SECONDS
    while any(map(is_claimed, outputs)) and time.monotonic() < deadline and not cancelled:
        time.sleep(1.0)


def _attended(running: LocalRunning, cancelled: list[int]) -> Ended | None:
    """Watch a command until it ends or the task is cancelled; all its processes are gone then."""
    try:
        while (ended := running.poll()) is None and not cancelled:
            time.sleep(POLL_SECONDS)
    finally:
        stop([running])
    if ended is not None and ended.code in (-signal.SIGTERM, -signal.SIGKILL):
        # A machine that goes down ends commands first. If it does, Ray starts the node again on another.
        deadline = time.monotonic() + DOWN_SECONDS
        while time.monotonic() < deadline and not cancelled:
            time.sleep(POLL_SECONDS)
    return ended


@contextlib.contextmanager
def _cancellation() -> Iterator[list[int]]:
    """A list that Ray's cancelling fills. It comes as a KeyboardInterrupt, which could strike between any two lines."""
    cancelled: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: cancelled.append(number))
    try:
        yield cancelled
    finally:
        signal.signal(signal.SIGINT, before)


def _made(node: Node, folder: Path) -> list[str]:
    files = [file for name in node.outputs if (folder / name).is_dir() for file in (folder / name).iterdir()]
    return [str(file.relative_to(folder)) for file in files if file.is_file()]
