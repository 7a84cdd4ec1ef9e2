"""The base's files, read one after another from beginning to end."""

from __future__ import annotations

import os
from pathlib import Path

from untax.digest_records import record_digest, recorded_digest
from untax.merge.sequential import SequentialReader


class BaseReader:
    """Reads the files of a base in the order in which they are asked for, and remembers the digests of large ones."""

    def __init__(self) -> None:
        self._reader: SequentialReader | None = None
        self._before: os.stat_result | None = None

    def __enter__(self) -> BaseReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None:
            self._finish()
        elif self._reader is not None:
            self._reader.abandon()

    def read(self, file: Path, start: int, stop: int) -> bytearray:
        """The bytes of a file between two offsets; forward only, and no file twice."""
        if self._reader is None or self._reader.path != file:
            self._finish()
            self._before = file.stat()
            self._reader = SequentialReader(file, digest=recorded_digest(file) is None)
        return self._reader.read(start, stop)

    def _finish(self) -> None:
        if self._reader is not None:
            digest = self._reader.close()
            if digest is not None and self._before is not None:
                record_digest(self._reader.path, digest, self._before)
            self._reader = None
