"""Large files read and written once, from the first byte to the last, with their digests on the way."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from untax.errors import UntaxError

_CHUNK = 1 << 24
_SYNC_EVERY = 1 << 28
# What waits for its digest stays in memory.
_WAITING = 16

Content = bytes | bytearray | memoryview


class RunningDigest:
    """SHA-256 of what comes, in the order in which it comes, computed by a thread of its own."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[Any]] = deque()

    def update(self, content: Content) -> None:
        """Take some more bytes, which must not change any more."""
        self._waiting.append(self._thread.submit(self._sha.update, content))
        while len(self._waiting) > _WAITING:
            self._waiting.popleft().result()

    def finish(self) -> str:
        """The digest of everything."""
        self._thread.shutdown()
        return self._sha.hexdigest()

    def abandon(self) -> None:
        """Stop."""
        self._thread.shutdown(cancel_futures=True)


class SequentialReader:
    """A file read forward only; whatever is skipped is read all the same if there is to be a digest.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, *, digest: bool):
        self.path = path
        self._handle = path.open("rb", buffering=0)
        self._digest = RunningDigest() if digest else None
        self._place = 0

    def read(self, start: int, stop: int) -> bytearray:
        """The bytes between two offsets, none before what was read already; they are not to be changed.

        Raises:
            UntaxError: the file was cut off meanwhile.
        """
        self._advance(start)
        buffer = bytearray(stop - start)
        view, filled = memoryview(buffer), 0
        while filled < len(buffer):
            count = self._handle.readinto(view[filled:])
            if not count:
                raise UntaxError(
                    "The file was cut off while it was read.", where=self.path, fix="Copy or download the model again."
                )
            filled += count
        if self._digest is not None:
            self._digest.update(buffer)
        self._place = stop
        return buffer

    def close(self) -> str | None:
        """Read to the end; the digest (SHA-256), if it was asked for."""
        size = os.fstat(self._handle.fileno()).st_size
        self._advance(size)
        self._handle.close()
        return None if self._digest is None else self._digest.finish()

    def abandon(self) -> None:
        """Close the file where it is."""
        self._handle.close()
        if self._digest is not None:
            self._digest.abandon()

    def _advance(self, offset: int) -> None:
        if self._digest is None:
            self._handle.seek(offset)
        while self._digest is not None and self._place < offset:
            self.read(self._place, min(offset, self._place + _CHUNK))
        self._place = offset


class SequentialWriter:
    """A new file written in one go; what is written is brought to the disk in the background meanwhile.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, background: ThreadPoolExecutor):
        self.path = path
        self._handle = path.open("xb", buffering=0)
        self._digest = RunningDigest()
        self._background = background
        self._syncs: list[Future[Any]] = []
        self._unsynced = 0

    def write(self, content: Content) -> None:
        """Append some bytes."""
        view = memoryview(content).cast("B")
        self._digest.update(view)
        self._unsynced += len(view)
        while len(view):
            view = view[self._handle.write(view) :]
        if self._unsynced >= _SYNC_EVERY:
            self._sync()

    def close(self) -> str:
        """Wait until all is on the disk; the digest (SHA-256) of what was written."""
        self._sync()
        digest = self._digest.finish()
        for future in self._syncs:
            future.result()
        self._handle.close()
        return digest

    def abandon(self) -> None:
        """Close the file as it is."""
        self._digest.abandon()
        for future in self._syncs:
            future.cancel()
        self._handle.close()

    def _sync(self) -> None:
        self._syncs.append(self._background.submit(os.fdatasync, self._handle.fileno()))
        self._unsynced = 0
