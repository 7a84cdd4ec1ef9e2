"""A node's command as a process group of its own, with a log, a fixed number of threads, and an end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from untax.errors import UntaxError
from untax.recipes.graph import Node

STOP_SECONDS = 10.0
PR_SET_PDEATHSIG = 1
FIRST_PORT = 29500


@dataclass
class Running:
    """A node at work."""

    node: Node
    process: subprocess.Popen[bytes]
    log: Path
    gpus: tuple[int, ...]
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self.started

    def stop(self) -> None:
        """End the whole group: SIGTERM, and SIGKILL for what is left after a while."""
        # Not SIGINT: on it Axolotl saves a half-trained adapter and exits with 0.
        _signal_group(self.process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        _signal_group(self.process, signal.SIGKILL)
        self.process.wait()


def start(
    node: Node, folder: Path, log: Path, *, variables: dict[str, str], gpus: tuple[int, ...], lock: IO[str]
) -> Running:
    """Start a node's command in the run folder; its output goes to ``log``.

    Raises:
        UntaxError: the command is not installed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        output.write(f"$ {' '.join(node.command)}\n".encode())
        output.flush()
        program = shutil.which(node.command[0], path=variables["PATH"])
        if program is None:
            raise UntaxError(
                f"The command '{node.command[0]}' of node {node.name} is not installed.",
                where=f"PATH {variables['PATH']}",
                fix="See `untax doctor`.",
            )
        process = subprocess.Popen(
            (program, *node.command[1:]),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
            pass_fds=(lock.fileno(),),
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    return Running(node, process, log, gpus)


def environment(threads: int, gpus: tuple[int, ...], *, cpu_only: bool = False) -> dict[str, str]:
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
    if cpu_only or gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
    if len(gpus) > 1:
        # torchrun's port, of which trainings side by side need one each.
        variables.setdefault("PET_MASTER_PORT", str(FIRST_PORT + gpus[0]))
    return variables


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _end_with_parent() -> None:
    """Have the kernel stop this process when the runner dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
