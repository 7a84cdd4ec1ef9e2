"""What the events of a folder say about each node: its last start, its last end, what it took."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from untax.run.events import read_events

SUMMED = ("wall_seconds", "cpu_seconds", "gpu_seconds", "energy_joules")


@dataclass
class NodeRecord:
    """One node's past.

    Attributes:
        started: the event of its last start, if any.
        ended: that of the last time it was made, if any.
        failed: that of its last failure, if it failed the last time it was tried.
        attempts: how often it was started in all runs.
        spent: what all of its attempts took, as far as their ends were seen: seconds and joules by name.
    """

    started: dict[str, Any] | None = None
    ended: dict[str, Any] | None = None
    failed: dict[str, Any] | None = None
    attempts: int = 0
    spent: dict[str, float] = field(default_factory=dict)


@dataclass
class FolderRecord:
    """A folder's past.

    Attributes:
        nodes: name -> its record.
        run: the first event of the last run, if any.
        finished: the last event of the last run, None while it runs or if it was killed.
    """

    nodes: dict[str, NodeRecord] = field(default_factory=dict)
    run: dict[str, Any] | None = None
    finished: dict[str, Any] | None = None


def read_record(folder: Path) -> FolderRecord:
    """The record of a run folder; empty before its first run."""
    record = FolderRecord()
    for event in read_events(folder):
        kind = event["event"]
        if kind == "run-started":
            record.run, record.finished = event, None
        elif kind == "run-ended":
            record.finished = event
        elif isinstance(event.get("node"), str):
            _take(record.nodes.setdefault(event["node"], NodeRecord()), event)
    return record


def peaks(folder: Path) -> dict[str, int]:
    """Node -> bytes of main memory that it held at most when it was last made or failed."""
    found: dict[str, int] = {}
    for event in read_events(folder):
        name, peak = event.get("node"), event.get("peak_memory")
        if isinstance(name, str) and isinstance(peak, int) and peak > 0:
            found[name] = peak
    return found


def _take(node: NodeRecord, event: dict[str, Any]) -> None:
    kind = event["event"]
    for name in SUMMED:
        if isinstance(event.get(name), int | float):
            node.spent[name] = round(node.spent.get(name, 0) + event[name], 3)
    if kind == "node-started":
        node.started, node.attempts = event, node.attempts + 1
    elif kind == "node-ended":
        node.ended, node.failed = event, None
    elif kind in ("node-failed", "node-blocked"):
        node.failed = event
    elif kind == "node-kept":
        node.failed = None
