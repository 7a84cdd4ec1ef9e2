"""What a run says goes to a terminal, a pipe or a file, which may be gone or full by then: the run goes on."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any, TextIO

GONE = {errno.EIO, errno.EPIPE}
"""Nobody will ever read it: the terminal was closed, or what a pipe leads to has ended."""


class PatientOutput:
    """A stream of text that loses what it cannot write, and no run with it: the record is in ``events.jsonl``.

    What a full disk refuses stays buffered until there is space. Of a terminal or a pipe that is gone nothing is kept,
    or the interpreter would stumble over it at its end.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write if that is possible; returns how much there was."""
        with self._patiently():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if that is possible."""
        with self._patiently():
            self._stream.flush()

    @contextlib.contextmanager
    def _patiently(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in GONE:
                with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), self._stream.fileno())
