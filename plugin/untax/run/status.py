"""``untax status``: every node of a run folder, whether it is finished, why not, and what it took."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from untax.errors import UntaxError
from untax.manifest import read_manifest
from untax.recipes.graph import Node, Plan
from untax.recipes.plan import plan
from untax.recipes.spec import SPEC_NAME, read_spec
from untax.run.done import manifest_name, version_changes
from untax.run.lock import Holder, holder
from untax.run.progress import Progress, of_node
from untax.run.reads import as_read
from untax.run.record import SUMMED, FolderRecord, NodeRecord, read_record
from untax.run.todo import Due, todo
from untax.run.tokens import trained_tokens
from untax.run.workers import STATE, log_path

USAGE = ("wall_seconds", "cpu_seconds", "gpu_seconds", "peak_memory", "gpu_peak_memory", "energy_joules")


@dataclass(frozen=True)
class NodeStatus:
    """One node.

    Attributes:
        name: its name.
        kind: what it does.
        state: ``done``, ``running``, ``failed`` (the last time it was tried), ``due``, or ``waiting``: it runs if what
            it reads changes.
        reason: why it is not done; empty if it is.
        command: its command line, to be typed in the run folder.
        needs: the nodes that must be finished before.
        outputs: what it makes.
        log: its log, if it has run.
        usage: of the last time it was made: wall, CPU and GPU time in seconds, peak memory in bytes, energy in joules;
            what is not known is None.
        tokens: that it was trained on, None for other nodes and where they were not counted.
        attempts: how often it was started, in all runs.
        spent: what all of these took: seconds and joules by name.
        versions: package -> (it was made with, now installed), where these differ.
        progress: how far it is, while it runs.
    """

    name: str
    kind: str
    state: str
    reason: str
    command: str
    needs: tuple[str, ...]
    outputs: tuple[str, ...]
    log: str | None
    usage: dict[str, float | int | None]
    tokens: int | None
    attempts: int
    spent: dict[str, float] = field(default_factory=dict)
    versions: dict[str, tuple[str, str]] = field(default_factory=dict)
    progress: Progress | None = None


@dataclass(frozen=True)
class Status:
    """A run folder.

    Attributes:
        folder: its path.
        held_by: who runs it now.
        last_run: the first event of the last run.
        ended: its last event; None while it runs, or if it was killed.
        nodes: in an order in which they could run.
    """

    folder: str
    held_by: Holder | None
    last_run: dict[str, Any] | None
    ended: dict[str, Any] | None
    nodes: tuple[NodeStatus, ...]

    def counts(self) -> dict[str, int]:
        """State -> how many nodes."""
        return dict(Counter(node.state for node in self.nodes))

    def totals(self) -> dict[str, float | int | None]:
        """The sums over all attempts at all nodes, the failed ones too; None where nobody knows any of it.

        What a killed runner had under way is not in it: nobody saw its end.
        """
        found = {name: [node.spent[name] for node in self.nodes if name in node.spent] for name in SUMMED}
        tokens = [node.tokens for node in self.nodes if node.tokens is not None]
        return {name: round(sum(values), 3) if values else None for name, values in found.items()} | {
            "tokens": sum(tokens) if tokens else None
        }

    def content(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**asdict(self), "counts": self.counts(), "totals": self.totals()}


def folder_status(folder: Path, *, rerun_on_version: bool = False) -> Status:
    """The state of a run folder; nothing is changed, and a run in it goes on.

    Raises:
        UntaxError: there is no recipe, or a YAML is missing or broken.
    """
    spec = read_spec(folder / SPEC_NAME)
    expanded = plan(spec)
    unwritten = _unwritten(expanded, folder)
    written = replace(expanded, nodes=tuple(node for node in expanded.nodes if node.name not in unwritten))
    nodes = (*as_read(written, folder).nodes, *(one.node for one in unwritten.values()))
    due = {one.node.name: one for one in todo(written, folder, spec.suite, rerun_on_version=rerun_on_version)}
    due |= unwritten
    record, held_by = read_record(folder), holder(folder / STATE / "lock")
    rows = tuple(_node(node, folder, due.get(node.name), record, running=held_by is not None) for node in nodes)
    return Status(str(folder), held_by, record.run, record.finished, rows)


def _unwritten(expanded: Plan, folder: Path) -> dict[str, Due]:
    """Nodes of a recipe that was edited and not expanded since: those whose YAML is not there, and what needs them."""
    found: dict[str, Due] = {}
    for node in expanded.nodes:
        waits = [need for need in node.needs if need in found]
        if node.config is not None and not (folder / node.config).exists():
            found[node.name] = Due(node, f"{node.config} is not written yet: untax recipe --from {SPEC_NAME}")
        elif waits:
            found[node.name] = Due(node, f"after {', '.join(waits)}")
    return found


def _node(node: Node, folder: Path, due: Due | None, record: FolderRecord, *, running: bool) -> NodeStatus:
    past = record.nodes.get(node.name, NodeRecord())
    state = _state(due, past, at_work=running and _at_work(past, record))
    manifest = _manifest(node, folder) if state == "done" else None
    log = log_path(folder, node)
    return NodeStatus(
        name=node.name,
        kind=node.kind,
        state=state,
        reason=_reason(due, past, state),
        command=shlex.join(node.command),
        needs=node.needs,
        outputs=node.outputs,
        log=str(log.relative_to(folder)) if log.exists() else None,
        usage=_usage(past, manifest),
        tokens=trained_tokens(node, folder) if state == "done" else None,
        attempts=past.attempts,
        spent=past.spent or _by_hand(node, folder),
        versions=version_changes(node, folder) if state == "done" else {},
        progress=of_node(node, folder, log) if state == "running" else None,
    )


def _state(due: Due | None, past: NodeRecord, *, at_work: bool) -> str:
    if due is None:
        return "done"
    if at_work:
        return "running"
    if not due.certain:
        return "waiting"
    return "failed" if past.failed and past.failed["event"] == "node-failed" else "due"


def _reason(due: Due | None, past: NodeRecord, state: str) -> str:
    if due is None:
        return ""
    return str((past.failed or {}).get("reason", due.reason)) if state == "failed" else due.reason


def _at_work(past: NodeRecord, record: FolderRecord) -> bool:
    """Whether the present run's last word on a node is that it was started."""
    run = (record.run or {}).get("run")
    if past.started is None or past.started.get("run") != run:
        return False
    return not any(event and event.get("run") == run for event in (past.ended, past.failed))


def _manifest(node: Node, folder: Path) -> dict[str, Any] | None:
    try:
        return read_manifest(folder / node.outputs[0], manifest_name(node))
    except UntaxError:
        return None


def _by_hand(node: Node, folder: Path) -> dict[str, float]:
    wall = (_manifest(node, folder) or {}).get("wall_seconds")
    return {"wall_seconds": wall} if isinstance(wall, int | float) else {}


def _usage(past: NodeRecord, manifest: dict[str, Any] | None) -> dict[str, float | int | None]:
    """As the runner measured it, at its last failure if it failed; of a node run by hand, what its manifest says."""
    if past.failed is not None and past.failed["event"] == "node-failed":
        return {name: past.failed.get(name) for name in USAGE}
    if past.ended is not None:
        return {name: past.ended.get(name) for name in USAGE}
    return {name: (manifest or {}).get(name) for name in USAGE}


def format_status(status: Status) -> str:
    """The same as text: a line per node, then the sums."""
    width = max((len(node.name) for node in status.nodes), default=0)
    lines = [f"{node.name:{width}}  {node.state:8}{_said(node)}".rstrip() for node in status.nodes]
    counts = ", ".join(f"{count} {state}" for state, count in sorted(status.counts().items()))
    lines.append(f"{len(status.nodes)} nodes: {counts}")
    totals = [f"{_number(value)} {_UNITS[name]}" for name, value in status.totals().items() if value is not None]
    if totals:
        lines.append("All attempts together: " + ", ".join(totals))
    if status.held_by:
        lines.append(f"Run by {status.held_by}")
    elif status.last_run and (status.ended is None or status.ended.get("status") != "done"):
        how = (
            "was killed"
            if status.ended is None
            else {"interrupted": "was interrupted"}.get(str(status.ended.get("status")), "failed")
        )
        lines.append(f"The last run {how}; `untax run` goes on from what is finished.")
    return "\n".join(lines)


_UNITS = {
    "wall_seconds": "s of wall time",
    "cpu_seconds": "s of CPU time",
    "gpu_seconds": "s of GPU time",
    "energy_joules": "J",
    "tokens": "tokens",
}


def _said(node: NodeStatus) -> str:
    if node.state != "done":
        progress = f"step {node.progress.step}/{node.progress.steps}  " if node.progress else ""
        return f"  {progress}{node.reason}"
    parts = [f"{_number(node.usage['wall_seconds'])} s"] if node.usage.get("wall_seconds") is not None else []
    if node.usage.get("peak_memory"):
        parts.append(f"{(node.usage['peak_memory'] or 0) / 2**30:.1f} GiB")
    if node.tokens is not None:
        parts.append(f"{node.tokens:,} tokens")
    if node.versions:
        changes = ", ".join(f"{name} {old} (now {new})" for name, (old, new) in node.versions.items())
        parts.append(f"made with {changes}")
    return "  " + ", ".join(parts) if parts else ""


def _number(value: float | int | None) -> str:
    return f"{value or 0:,.0f}"
