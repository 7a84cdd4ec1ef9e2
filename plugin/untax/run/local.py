"""Nodes on this machine: several at a time, as GPUs, CPU slots and main memory allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from untax.recipes.graph import Node
from untax.run.process import LocalRunning, environment, start, stop
from untax.run.resources import GIB, Needs, Resources, check_gpus
from untax.run.room import make_room
from untax.run.warm import WarmPool
from untax.run.workers import Running


@dataclass
class LocalWorkers:
    """This machine.

    Attributes:
        folder: the run folder.
        resources: what there is.
        needs: what nodes need of its memory.
        lock: the file descriptor of the folder's lock, which commands hold as well.
        warm: processes that have imported what commands need, and fork them; None to start each anew.
        running: what is at work.
        awaiting: the node that waits for more GPUs than are free.
    """

    folder: Path
    resources: Resources
    needs: Needs = field(default_factory=Needs)
    lock: int | None = None
    warm: WarmPool | None = None
    running: list[LocalRunning] = field(default_factory=list)
    awaiting: Node | None = None

    def describe(self) -> str:
        """GPUs, or how many nodes at a time, and threads."""
        limits = self.resources
        where = f"GPUs {', '.join(limits.gpus)}" if limits.gpus else f"{limits.jobs} at a time on the CPU"
        most = f", at most {limits.at_most} at a time" if limits.gpus and limits.at_most else ""
        return f"{where}{most}, {limits.threads} thread(s) each, {limits.memory / GIB:.0f} GiB of memory"

    def check(self, nodes: Sequence[Node]) -> None:
        """Refuse a node that wants more GPUs than there are. One that may want more memory runs alone."""
        check_gpus(nodes, self.resources)

    def start(self, node: Node) -> Running | None:
        """Start a node's command, or return None while there is no room for it."""
        # Not polled here: nothing may start before the engine has seen how a node ended.
        self.running = [one for one in self.running if one.ended is None]
        gpus = self._free_gpus(node)
        if gpus is None or not self._has_slot(node) or not self._has_memory(node):
            return None
        forks = self.warm if self.warm and self.warm.serves(node) else None
        if forks and not forks.ready(node):
            return None
        note = make_room(node, self.folder)
        # A fork is served only in the environment in which its parent imported.
        variables = (
            forks.variables if forks else environment(self.resources.threads, gpus, cpu_only=self.resources.cpu_only)
        )
        held = () if self.lock is None else (self.lock,)
        running = start(node, self.folder, variables=variables, gpus=gpus, pass_fds=held, forks=forks)
        running.note, self.awaiting = note, None if self.awaiting == node else self.awaiting
        self.running.append(running)
        return running

    def stop(self, running: Sequence[Running]) -> None:
        """End nodes and all their processes."""
        stop([one for one in running if isinstance(one, LocalRunning)])

    def close(self) -> None:
        """End the warm processes."""
        if self.warm:
            self.warm.close()

    def _free_gpus(self, node: Node) -> tuple[str, ...] | None:
        """The ids that a node gets, none if it needs none; None while too few are free.

        While one waits for several, the others get none: else a training on many would wait for all that take one.
        """
        if not self.resources.on_gpu(node):
            return ()
        if self.awaiting not in (None, node):
            return None
        taken = {gpu for running in self.running for gpu in running.gpus}
        free = [gpu for gpu in self.resources.gpus if gpu not in taken]
        if len(free) < node.gpus:
            self.awaiting = node
            return None
        return tuple(sorted(free, key=self._order)[: node.gpus])

    def _order(self, gpu: str) -> tuple[int, str]:
        return (int(gpu), "") if gpu.isdigit() else (self.resources.gpus.index(gpu), gpu)

    def _has_slot(self, node: Node) -> bool:
        if self.resources.at_most and len(self.running) >= self.resources.at_most:
            return False
        on_cpu = [one for one in self.running if not self.resources.on_gpu(one.node)]
        importing = self.warm.importing if self.warm else 0
        return self.resources.on_gpu(node) or len(on_cpu) + importing < self.resources.jobs

    def _has_memory(self, node: Node) -> bool:
        """Whether what runs leaves enough; a node for which nothing would be enough runs alone."""
        if not self.running or not self.resources.memory:
            return True
        nodes = [node, *(one.node for one in self.running)]
        needed = sum(self.needs.memory(one, on_gpu=self.resources.on_gpu(one)) for one in nodes)
        return needed <= self.resources.memory
