"""A node's command as a process group of its own, with a log, a fixed number of threads, and an end."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from untax.errors import UntaxError
from untax.files import plain_disk_errors
from untax.recipes.graph import Node
from untax.run.guard import Guard
from untax.run.orphans import VARIABLE, kill_members
from untax.run.usage import Meter
from untax.run.workers import Ended, log_path, progress_path

STOP_SECONDS = 10.0
PR_SET_PDEATHSIG = 1
FIRST_PORT = 29500


class Process(Protocol):
    """What is known of a command's first process."""

    @property
    def pid(self) -> int:
        """Its id, which is that of its group too."""

    def ended(self) -> tuple[int, Any, str | None] | None:
        """(exit status or minus the signal, its resource usage if known, why nobody knows more), or None before."""


class Forks(Protocol):
    """What has commands' modules imported already."""

    def start(self, node: Node, *, log: Path, variables: dict[str, str]) -> Process | None:
        """A child that runs the node's command, or None if it must be started anew."""


class Child:
    """A process that this one started."""

    def __init__(self, process: subprocess.Popen[bytes]):
        self._process = process

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    def ended(self) -> tuple[int, Any, str | None] | None:
        """Its end with its resource usage, which Popen's own waiting would throw away."""
        try:
            pid, status, rusage = os.wait4(self.pid, os.WNOHANG)
        except ChildProcessError:
            return (self._process.poll() or 0, None, None)
        if not pid:
            return None
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return (self._process.returncode, rusage, None)


class LocalRunning:
    """A node's command at work on this machine.

    Attributes:
        node: the node.
        log: where its output goes.
        gpus: the ids of its GPUs.
        progress: the file in which it tells its progress, by which processes in other groups are known for its own.
        where: empty, which means this machine.
        note: what its start found and kept.
        ended: its end, once somebody has polled it.
    """

    where = ""

    def __init__(self, node: Node, process: Process, log: Path, gpus: tuple[str, ...], progress: str | None = None):
        self.node, self.process, self.log, self.gpus, self.progress = node, process, log, gpus, progress
        self.note = ""
        self.meter = Meter(process.pid, gpus)
        self._guard = Guard(process.pid)
        self.ended: Ended | None = None

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return self.meter.seconds

    def poll(self) -> Ended | None:
        """Its end, or None while it is at work."""
        if self.ended is None:
            end = self.process.ended()
            if end is None:
                self.meter.sample()
            else:
                code, rusage, problem = end
                self.ended = Ended(code, self.meter.usage(rusage), problem=problem)
                # What a killed command left behind of its group would go on writing into its folder.
                signal_group(self.process.pid, signal.SIGKILL)
                if self.progress:
                    kill_members(self.progress)
                self._guard.release()
        return self.ended


def stop(running: Sequence[LocalRunning]) -> None:
    """End whole groups: SIGTERM, and SIGKILL for what is left after a while or at a second Ctrl-C."""
    # Not SIGINT: on it Axolotl saves a half-trained adapter and exits with 0.
    for one in running:
        if one.poll() is None:
            signal_group(one.process.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    try:
        while time.monotonic() < deadline and any(one.poll() is None for one in running):
            time.sleep(0.05)
    finally:
        for one in running:
            if one.poll() is None:
                signal_group(one.process.pid, signal.SIGKILL)
        while any(one.poll() is None for one in running):
            time.sleep(0.01)


def start(
    node: Node,
    folder: Path,
    *,
    variables: dict[str, str],
    gpus: tuple[str, ...] = (),
    pass_fds: Sequence[int] = (),
    forks: Forks | None = None,
) -> LocalRunning:
    """Start a node's command in the run folder; its output goes to the node's log.

    Args:
        node: the node.
        folder: the run folder.
        variables: its environment.
        gpus: the ids of its GPUs.
        pass_fds: file descriptors that it holds while it lives.
        forks: what may fork the command instead of starting it anew.

    Raises:
        UntaxError: the command is not installed, or the log cannot be written.
    """
    log, variables = open_log(node, folder, variables)
    forked = forks.start(node, log=log, variables=variables) if forks else None
    process = forked or _spawn(node, folder, log, variables, pass_fds)
    try:
        return LocalRunning(node, process, log, gpus, variables[VARIABLE])
    except BaseException:  # No process left for its guard, say: nobody would know of the command.
        signal_group(process.pid, signal.SIGKILL)
        raise


def _spawn(node: Node, folder: Path, log: Path, variables: dict[str, str], pass_fds: Sequence[int]) -> Child:
    with plain_disk_errors(log), log.open("ab") as output:
        process = subprocess.Popen(
            (program(node, variables), *node.command[1:]),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
            preexec_fn=functools.partial(end_with_parent, os.getpid()) if sys.platform == "linux" else None,
        )
    return Child(process)


def open_log(node: Node, folder: Path, variables: dict[str, str]) -> tuple[Path, dict[str, str]]:
    """Begin a node's log with its command line; the variables with the file to report progress in.

    The log of the attempt before is kept as ``<node>.log.1``.
    """
    log, progress = log_path(folder, node), progress_path(folder, node)
    with plain_disk_errors(log):
        for file in (log, progress):
            file.parent.mkdir(parents=True, exist_ok=True)
        if log.exists():
            log.replace(log.with_name(f"{log.name}.1"))
        progress.unlink(missing_ok=True)
        log.write_text(f"$ {shlex.join(node.command)}\n", encoding="utf-8")
    return log, {**variables, VARIABLE: str(progress.resolve())}


def program(node: Node, variables: dict[str, str]) -> str:
    """The path of a node's command.

    Raises:
        UntaxError: it is not installed.
    """
    found = shutil.which(node.command[0], path=variables["PATH"])
    if found is None:
        raise UntaxError(
            f"The command '{node.command[0]}' of node {node.name} is not installed.",
            where=f"PATH {variables['PATH']}",
            fix="See `untax doctor`.",
        )
    return found


def environment(threads: int, gpus: Sequence[str] = (), *, cpu_only: bool = False) -> dict[str, str]:
    """A node's environment: this one's, with its tools first on PATH and its share of the machine."""
    binaries = str(Path(sys.executable).parent)
    variables = {
        **os.environ,
        "PATH": os.pathsep.join([binaries, os.environ.get("PATH", "")]),
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONHASHSEED": "0",
    }
    variables.setdefault("AXOLOTL_DO_NOT_TRACK", "1")
    if gpus and not os.environ.get("CUDA_VISIBLE_DEVICES"):
        # The order in which `nvidia-smi` counts, and so the energy of a GPU is read from that GPU.
        variables.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    if cpu_only or gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if len(gpus) > 1:
        # torchrun's port, of which trainings side by side need one each.
        variables.setdefault("PET_MASTER_PORT", str(FIRST_PORT + _number(gpus[0])))
    return variables


def _number(gpu: str) -> int:
    return int(gpu) if gpu.isdigit() else zlib.crc32(gpu.encode()) % 1000


def signal_group(pid: int, number: int) -> None:
    """Send a signal to a command and all its processes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def end_with_parent(parent: int | None = None) -> None:
    """Have the kernel stop this process when the runner, ``parent``, dies, even by SIGKILL and even before this."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        os._exit(1)
