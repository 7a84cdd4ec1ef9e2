"""One runner to a run folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from untax.errors import UntaxError
from untax.files import make_folder, plain_disk_errors
from untax.run.events import stamp, this_host

PATIENCE_SECONDS = 3.0
# A file system that knows no locks, as some of clusters: one must be able to run there.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@dataclass(frozen=True)
class Holder:
    """Who runs a folder.

    Attributes:
        pid: its process, 0 if that is not known.
        host: its machine.
        since: when it began, UTC.
    """

    pid: int = 0
    host: str = "unknown"
    since: str = "unknown"

    def __str__(self) -> str:
        return f"process {self.pid or 'unknown'} on {self.host}, since {self.since}"


@contextlib.contextmanager
def folder_lock(path: Path) -> Iterator[IO[str]]:
    """Hold ``path`` for this process and those it starts with the handle; the kernel frees it when all are gone.

    Raises:
        UntaxError: another runner, or a command that one left behind, holds it; or the disk refuses.
    """
    make_folder(path.parent)
    with plain_disk_errors(path):
        handle = path.open("a+", encoding="utf-8")
    try:
        if not _acquire(handle):
            raise UntaxError(
                f"This run folder is in use: {_read(path)}, or a command that it started.",
                where=path.parent.parent,
                fix="Wait for it (`untax status` shows how far it is), or stop it, then run the same command again.",
            )
        with plain_disk_errors(path):
            handle.truncate(0)
            handle.write(json.dumps(asdict(Holder(os.getpid(), this_host(), stamp()))))
            handle.flush()
        yield handle
    finally:
        handle.close()


def holder(path: Path) -> Holder | None:
    """Who holds a lock now, or None. Nothing is made, and nobody is kept from anything."""
    try:
        handle = path.open(encoding="utf-8")
    except OSError:
        return None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(path)
        except OSError:
            return None
    return None


def _read(path: Path) -> Holder:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Holder(int(content["pid"]), str(content["host"]), str(content["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Holder()


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
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return True
        else:
            return True
