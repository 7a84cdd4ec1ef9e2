"""Digests of large files, remembered on disk: a base of 140 GB is read for its digest once, not at every command.

A record holds for one file with one device, inode, size, time of change and time of status change, and for one sample
of its content. The last of the times cannot be set back by whoever writes a file, but by whoever sets the clock back,
and some file systems count seconds only: then the sample tells, since other weights differ nearly everywhere.
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
SAMPLES = 64
SAMPLE_BYTES = 1 << 12


def file_identity(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file's content does."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def sampled(path: Path) -> str:
    """The digest of pieces of a file, evenly spread from its first byte to its last: of a small file all of it."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        last = max(0, os.fstat(handle.fileno()).st_size - SAMPLE_BYTES)
        for number in range(SAMPLES):
            start = last * number // (SAMPLES - 1)
            handle.seek(start)
            digest.update(handle.read(SAMPLE_BYTES))
    return digest.hexdigest()


def is_settled(status: os.stat_result) -> bool:
    """Whether a later change would leave another time stamp.

    Not so for a file that changed within the last seconds, or, where the clock was set back, in the future.
    """
    return time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_NS


def recorded_digest(path: Path) -> str | None:
    """The SHA-256 of a file as it was found before, if the file is still the same."""
    status = path.stat()
    if status.st_size < LARGE or not is_settled(status):
        return None
    try:
        digest = _record(path, status).read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return digest if len(digest) == 64 and set(digest) <= set(string.hexdigits) else None


def record_digest(path: Path, digest: str, before: os.stat_result) -> None:
    """Remember a file's digest, unless it changed since ``before`` or is small; where that cannot be, forget it."""
    status = path.stat()
    if file_identity(status) != file_identity(before) or status.st_size < LARGE or not is_settled(status):
        return
    with contextlib.suppress(OSError):
        record = _record(path, status)
        record.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(dir=record.parent)
        with os.fdopen(descriptor, "w", encoding="ascii") as handle:
            handle.write(digest)
        os.replace(part, record)


def _record(path: Path, status: os.stat_result) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    name = hashlib.sha256(" ".join(map(str, (*file_identity(status), sampled(path)))).encode()).hexdigest()
    return Path(cache) / "untax" / "digests" / name
