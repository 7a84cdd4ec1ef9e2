"""What a command leaves running when it is killed: torchrun starts each rank in a session of its own.

No signal to the command's group reaches those. They are known by what they inherit: the variable that names the file in
which their node tells its progress.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

VARIABLE = "UNTAX_PROGRESS"


def members(progress: str) -> list[int]:
    """The processes that tell their progress in this file, or would; none where the kernel does not say."""
    wanted, found = f"{VARIABLE}={progress}".encode(), []
    with contextlib.suppress(OSError):
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if wanted in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def kill_members(progress: str) -> None:
    """Kill them all."""
    for pid in members(progress):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
