"""One runner to a run folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from untax.errors import UntaxError

PATIENCE_SECONDS = 3.0


@contextlib.contextmanager
def folder_lock(path: Path) -> Iterator[IO[str]]:
    """Hold ``path`` for this process and those it starts with the handle; the kernel frees it when all are gone.

    Raises:
        UntaxError: another runner, or a training that one left behind, holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = path.open("a+", encoding="utf-8")
    try:
        if not _acquire(handle):
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise UntaxError(
                f"This run folder is in use by process {holder}, or by a command that it started.",
                where=path.parent.parent,
                fix="Wait for it, or stop it, then run the same command again.",
            )
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield handle
    finally:
        handle.close()


def _acquire(handle: IO[str]) -> bool:
    """Try for a moment: the commands of a killed runner take that long to end."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        else:
            return True
