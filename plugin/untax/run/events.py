"""``events.jsonl``: what a run folder went through, a line of JSON per event, only ever appended to."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EVENTS_NAME = "events.jsonl"


class Events:
    """One run's events.

    Every line has ``time`` (UTC), ``run`` (one id for all lines of a call of ``untax run``) and ``event``:
    ``run-started``, ``node-kept``, ``node-started``, ``node-ended``, ``node-failed``, ``node-blocked``,
    ``node-stopped`` or ``run-ended``.

    Attributes:
        path: the file.
        problem: why the last event could not be written, if so. A run goes on without its record.
    """

    def __init__(self, folder: Path):
        self.path = folder / EVENTS_NAME
        self.run = uuid.uuid4().hex[:12]
        self.problem: str | None = None

    def write(self, event: str, **fields: Any) -> None:
        """Append a line in one piece, so that a reader never sees half of one that was not cut by the disk."""
        entry = {"time": stamp(), "run": self.run, "event": event, **fields}
        line = json.dumps(entry, ensure_ascii=False, default=str) + "\n"
        try:
            with self.path.open("ab") as handle:
                # What a killed runner or a full disk cut off must not swallow this line.
                handle.write(("" if _ends_a_line(self.path) else "\n").encode() + line.encode("utf-8", "replace"))
        except OSError as error:
            self.problem = error.strerror or str(error)


def read_events(folder: Path) -> Iterator[dict[str, Any]]:
    """All events in their order; lines that were cut are passed over."""
    try:
        with (folder / EVENTS_NAME).open(encoding="utf-8", errors="replace") as handle:
            for line in handle:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict) and isinstance(entry.get("event"), str):
                    yield entry
    except FileNotFoundError:
        return


def stamp() -> str:
    """Now, in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def this_host() -> str:
    """The name of this machine."""
    return socket.gethostname()


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as handle:
        if not handle.seek(0, os.SEEK_END):
            return True
        handle.seek(-1, os.SEEK_END)
        return handle.read(1) == b"\n"
