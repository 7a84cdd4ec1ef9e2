"""What a run would do now, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from untax.recipes.graph import Node, Plan
from untax.run.done import anew, awaits_rows, unfinished
from untax.run.reads import as_read
from untax.run.room import resumes_from


@dataclass(frozen=True)
class Due:
    """A node that a run would start.

    Attributes:
        node: the node.
        reason: why.
        certain: whether it would run in any case; else it runs only if a node that runs before it makes something else
            than it made before.
    """

    node: Node
    reason: str
    certain: bool = True


def todo(expanded: Plan, folder: Path, suite: str | None, *, rerun_on_version: bool = False) -> list[Due]:
    """All that a run would start or might start now, in an order in which it could."""
    due: dict[str, Due] = {}
    for node in as_read(expanded, folder).nodes:
        reason = unfinished(node, folder, suite, rerun_on_version=rerun_on_version)
        waits = [need for need in node.needs if need in due]
        if reason and waits and awaits_rows(node, folder):
            due[node.name] = Due(node, f"after {', '.join(waits)}, if its rows change", certain=False)
        elif reason:
            checkpoint = resumes_from(node, folder)
            said = f"{reason}; goes on from {checkpoint.name}" if checkpoint else reason
            due[node.name] = Due(anew(node, folder, suite), said)
        elif waits:
            due[node.name] = Due(node, f"if {' or '.join(waits)} changes what it reads", certain=False)
    return list(due.values())
