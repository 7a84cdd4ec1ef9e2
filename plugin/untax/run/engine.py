"""The engine: runs the nodes of a graph that are not finished, the longest chain first, wherever workers are."""

from __future__ import annotations

import contextlib
import dataclasses
import graphlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from untax.errors import UntaxError
from untax.files import disk_error
from untax.recipes.graph import Node
from untax.run.done import anew, unfinished
from untax.run.events import Events
from untax.run.judge import why
from untax.run.screen import Screen
from untax.run.todo import Due
from untax.run.tokens import trained_tokens
from untax.run.workers import Ended, Running, Workers, log_path

POLL_SECONDS = 0.1
# Relative lengths, for the order only: a training dwarfs a merge.
LENGTH = {"disperse": 1, "replay": 1, "fisher": 3, "train": 10, "merge": 1, "score": 2}


@dataclass
class Engine:
    """One run of a graph.

    Attributes:
        nodes: what may be run; what they need besides is taken for finished.
        folder: the run folder.
        suite: the suite of score nodes.
        workers: where nodes run.
        screen: what the user sees.
        events: the record.
        keep_going: whether nodes that do not need a failed one are still started.
        rerun_on_version: whether another version of a package is a reason to run again.
    """

    nodes: Sequence[Node]
    folder: Path
    suite: str | None
    workers: Workers
    screen: Screen
    events: Events
    keep_going: bool = True
    rerun_on_version: bool = False
    done: set[str] = field(default_factory=set)
    due: dict[str, Due] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    running: list[Running] = field(default_factory=list)

    def run(self) -> None:
        """Run everything that is not finished.

        Raises:
            UntaxError: a node could never start, and nothing was run; or nodes failed, and, with ``keep_going``, those
                that do not need them were still run.
            KeyboardInterrupt: after what was running has been stopped.
        """
        self.workers.check(self.nodes)
        rank = chain_lengths(self.nodes)
        waiting = sorted(self.nodes, key=lambda node: -rank[node.name])
        try:
            while waiting or self.running:
                waiting = [node for node in waiting if not self._advance(node)]
                if waiting or self.running:
                    time.sleep(POLL_SECONDS)
                self._collect()
                self.screen.refresh(self.running)
        finally:
            self._stop()
        if self.failed:
            raise UntaxError(
                "These nodes failed:\n  - "
                + "\n  - ".join(f"{name}: {reason}" for name, reason in self.failed.items()),
                where=self.folder,
                fix="Mend the cause, then run the same command again: what is finished is kept.",
            )

    def _advance(self, node: Node) -> bool:
        """Take a node off the waiting list if it can be: started, found finished, or out of reach."""
        failed = [need for need in node.needs if need in self.failed]
        if failed or (self.failed and not self.keep_going):
            self._block(node, f"not run, since it needs {', '.join(failed)}" if failed else "not run after a failure")
            return True
        selected = {one.name for one in self.nodes}
        if not self.done.issuperset(selected.intersection(node.needs)):
            return False
        try:
            return self._finished_before(node) or self._start(node)
        except UntaxError as error:
            self._fail(node, None, str(error))
        except OSError as error:  # No process left, or a file that must not be read: the others go on.
            self._fail(node, None, self._refused(error))
        return True

    def _finished_before(self, node: Node) -> bool:
        """Whether the node is done; found out once, when what it needs is there."""
        if node.name not in self.due:
            reason = self._unfinished(node)
            if reason is None:
                self.done.add(node.name)
                self.screen.kept(node)
                self.events.write("node-kept", node=node.name, kind=node.kind)
                return True
            self.due[node.name] = Due(anew(node, self.folder, self.suite), reason)
        return False

    def _unfinished(self, node: Node) -> str | None:
        return unfinished(node, self.folder, self.suite, rerun_on_version=self.rerun_on_version)

    def _start(self, node: Node) -> bool:
        due = self.due[node.name]
        running = self.workers.start(due.node)
        if running is None:
            return False
        self.running.append(running)
        reason = f"{due.reason}; {running.note}" if running.note else due.reason
        self.screen.started(due.node, reason)
        self.events.write(
            "node-started",
            node=node.name,
            kind=node.kind,
            command=list(due.node.command),
            reason=reason,
            gpus=list(running.gpus),
        )
        return True

    def _collect(self) -> None:
        """Settle what has ended."""
        for running in list(self.running):
            ended = running.poll()
            if ended is None:
                continue
            self.running.remove(running)
            reason = self._judge(running, ended)
            if reason is not None:
                self._fail(running.node, ended, reason, running)
                continue
            self.done.add(running.node.name)
            self.screen.finished(running.node, ended)
            self._write("node-ended", running, ended, tokens=trained_tokens(running.node, self.folder))

    def _judge(self, running: Running, ended: Ended) -> str | None:
        """Why an ended node counts as failed: its end, or a manifest that does not prove its work."""
        if ended.problem or ended.code != 0:
            return f"{why(ended, running.log)}; log: {running.log}"
        try:  # Whatever the versions: it was made just now.
            reason = unfinished(running.node, self.folder, self.suite)
        except OSError as error:
            reason = self._refused(error)
        return None if reason is None else f"ended well, but {reason}; log: {running.log}"

    def _refused(self, error: OSError) -> str:
        return str(disk_error(error, Path(error.filename or self.folder)))

    def _fail(self, node: Node, ended: Ended | None, reason: str, running: Running | None = None) -> None:
        self.failed[node.name] = reason
        self.screen.failed(node, ended, reason)
        if running is not None and ended is not None:
            self._write("node-failed", running, ended, reason=reason)
        else:
            self.events.write("node-failed", node=node.name, kind=node.kind, reason=reason)

    def _block(self, node: Node, reason: str) -> None:
        self.failed[node.name] = reason
        self.screen.blocked(node, reason)
        self.events.write("node-blocked", node=node.name, kind=node.kind, reason=reason)

    def _write(self, event: str, running: Running, ended: Ended, **fields: Any) -> None:
        self.events.write(
            event,
            node=running.node.name,
            kind=running.node.kind,
            code=ended.code,
            **fields,
            **dataclasses.asdict(ended.usage),
            gpus=list(running.gpus),
            where=running.where,
            attempts=ended.attempts,
            log=str(log_path(Path(), running.node)),
        )

    def _stop(self) -> None:
        """End what is still at work, after an interruption or an error."""
        if not self.running:
            return
        with contextlib.ExitStack() as last:  # Also what a second Ctrl-C leaves to be done.
            for one in self.running:
                last.callback(self._write_stopped, one)
            last.callback(self.workers.stop, self.running)
            self.screen.say(f"stopping {', '.join(one.node.name for one in self.running)} ...")

    def _write_stopped(self, running: Running) -> None:
        ended = running.poll()
        if ended is None:
            self.events.write("node-stopped", node=running.node.name, kind=running.node.kind)
        else:
            self._write("node-stopped", running, ended)


def chain_lengths(nodes: Sequence[Node]) -> dict[str, float]:
    """For each node the length of the longest chain that begins with it: long chains start first."""
    lengths: dict[str, float] = {}
    by_name = {node.name: node for node in nodes}
    needs = {node.name: [need for need in node.needs if need in by_name] for node in nodes}
    for name in reversed([*graphlib.TopologicalSorter(needs).static_order()]):
        after = [lengths[other.name] for other in nodes if name in other.needs]
        lengths[name] = LENGTH[by_name[name].kind] * by_name[name].share + max(after, default=0)
    return lengths
