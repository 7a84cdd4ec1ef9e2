"""Digests of large files, remembered on disk: a base of 140 GB is read for its digest once, not at every command.

A record holds for one file with one device, inode, size, time of change and time of status change. The last of these
cannot be set back by whoever writes a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import string
import tempfile
import time
from pathlib import Path

SETTLED_NS = 2_000_000_000
"""Older than the coarsest time stamps of the file systems in use."""
LARGE = 1 << 24
"""Bytes from which on a digest is remembered."""


def file_identity(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file's content does."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def is_settled(status: os.stat_result) -> bool:
    """Whether a later change would leave another time stamp: not so for a file that changed within the last seconds."""
    return time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_NS


def recorded_digest(path: Path) -> str | None:
    """The SHA-256 of a file as it was found before, if the file is still the same."""
    status = path.stat()
    if status.st_size < LARGE or not is_settled(status):
        return None
    try:
        digest = _record(file_identity(status)).read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return digest if len(digest) == 64 and set(digest) <= set(string.hexdigits) else None


def record_digest(path: Path, digest: str, before: os.stat_result) -> None:
    """Remember a file's digest, unless it changed since ``before`` or is small; where that cannot be, forget it."""
    status = path.stat()
    if file_identity(status) != file_identity(before) or status.st_size < LARGE or not is_settled(status):
        return
    record = _record(file_identity(status))
    with contextlib.suppress(OSError):
        record.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(dir=record.parent)
        with os.fdopen(descriptor, "w", encoding="ascii") as handle:
            handle.write(digest)
        os.replace(part, record)


def _record(identity: tuple[int, ...]) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    name = hashlib.sha256(" ".join(map(str, identity)).encode()).hexdigest()
    return Path(cache) / "untax" / "digests" / name
