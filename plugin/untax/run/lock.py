"""One runner to a run folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from untax.errors import UntaxError


@contextlib.contextmanager
def folder_lock(path: Path) -> Iterator[IO[str]]:
    """Hold ``path`` for this process and those it starts with the handle; the kernel frees it when all are gone.

    Raises:
        UntaxError: another runner, or a training that one left behind, holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = path.open("a+", encoding="utf-8")
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise UntaxError(
                f"This run folder is in use by process {holder}, or by a command that it started.",
                where=path.parent.parent,
                fix="Wait for it, or stop it, then run the same command again.",
            ) from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield handle
    finally:
        handle.close()
