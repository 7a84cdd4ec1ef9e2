"""The local engine: runs the nodes of a graph on this machine, several at a time, the longest chain first."""

from __future__ import annotations

import graphlib
import itertools
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from untax.errors import UntaxError
from untax.manifest import MANIFEST_NAME, digest_file, read_manifest
from untax.recipes.graph import Node, Plan
from untax.run.done import manifest_name, stale_inputs, unfinished
from untax.run.process import Running, environment, start
from untax.run.screen import Screen
from untax.run.yamls import read_yaml
from untax.training.started import is_claimed, started_with

STATE = ".untax"
POLL_SECONDS = 0.1
# Relative lengths, for the order only: a training dwarfs a merge.
LENGTH = {"disperse": 1, "replay": 1, "fisher": 3, "train": 10, "merge": 1, "score": 2}
ON_GPU = ("train", "score", "fisher")


@dataclass(frozen=True)
class Resources:
    """What the nodes may use.

    Attributes:
        jobs: commands at a time.
        threads: threads of each, which its numbers may depend on.
        gpus: ids, of which each training takes as many as its node says, and each scoring and statistic one; none on a
            CPU.
        cpu_only: whether GPUs that are there are to be left alone.
    """

    jobs: int
    threads: int
    gpus: tuple[int, ...] = ()
    cpu_only: bool = False


@dataclass
class Engine:
    """One run of a graph."""

    plan: Plan
    folder: Path
    suite: str | None
    resources: Resources
    screen: Screen
    lock: IO[str]
    done: set[str] = field(default_factory=set)
    due: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    running: list[Running] = field(default_factory=list)
    gpus_awaited: bool = False

    def run(self) -> None:
        """Run everything that is not finished.

        Raises:
            UntaxError: a node wants more GPUs than there are, and nothing was run; or nodes failed, and those that do
                not need them were still run.
            KeyboardInterrupt: after what was running has been stopped.
        """
        check_gpus(self.plan.nodes, self.resources)
        rank = chain_lengths(self.plan.nodes)
        waiting = sorted(self.plan.nodes, key=lambda node: -rank[node.name])
        try:
            while waiting or self.running:
                self.gpus_awaited = False
                waiting = [node for node in waiting if not self._advance(node)]
                self._collect()
                self.screen.refresh(self.running)
        finally:
            for leftover in self.running:
                leftover.stop()
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
        if failed:
            self.failed[node.name] = f"not run, since it needs {', '.join(failed)}"
            return True
        if not self.done.issuperset(node.needs):
            return False
        try:
            return self._finished_before(node) or self._start(node)
        except UntaxError as error:
            self.failed[node.name] = str(error)
            self.screen.say(f"      {node.name}: {error}")
            return True

    def _finished_before(self, node: Node) -> bool:
        """Whether the node is done; found out once, when what it needs is there."""
        if node.name not in self.due:
            reason = unfinished(node, self.folder, self.suite)
            if reason is None:
                self.done.add(node.name)
                self.screen.kept(node)
                return True
            self.due[node.name] = reason
        return False

    def _start(self, node: Node) -> bool:
        gpus = self._free_gpus(node)
        if gpus is None or len(self.running) >= self.resources.jobs:
            return False
        make_room(node, self.folder)
        log = self.folder / STATE / "logs" / f"{node.name}.log"
        variables = environment(self.resources.threads, gpus, cpu_only=self.resources.cpu_only)
        self.running.append(start(node, self.folder, log, variables=variables, gpus=gpus, lock=self.lock))
        self.screen.started(node, self.due[node.name])
        return True

    def _free_gpus(self, node: Node) -> tuple[int, ...] | None:
        """The ids that a node gets, none if it needs none; None while too few are free.

        What then stands behind it in the order gets none either: else a training on many would wait for all that take
        one.
        """
        if not self.resources.gpus or node.kind not in ON_GPU:
            return ()
        taken = {gpu for running in self.running for gpu in running.gpus}
        free = sorted(set(self.resources.gpus) - taken)
        if self.gpus_awaited or len(free) < node.gpus:
            self.gpus_awaited = True
            return None
        return tuple(free[: node.gpus])

    def _collect(self) -> None:
        """Wait a moment, then settle what has ended."""
        if self.running:
            time.sleep(POLL_SECONDS)
        for running in [running for running in self.running if running.process.poll() is not None]:
            self.running.remove(running)
            reason = self._judge(running)
            if reason is None:
                self.done.add(running.node.name)
                self.screen.finished(running)
            else:
                self.failed[running.node.name] = reason
                self.screen.failed(running, reason)

    def _judge(self, running: Running) -> str | None:
        """Why an ended node counts as failed: its exit code, or a manifest that does not prove its work."""
        code = running.process.returncode
        if code != 0:
            return f"ended with exit code {code}; log: {running.log}"
        reason = unfinished(running.node, self.folder, self.suite)
        return None if reason is None else f"ended well, but {reason}; log: {running.log}"


def check_gpus(nodes: tuple[Node, ...], resources: Resources) -> None:
    """Refuse a graph with a node that could never start.

    Raises:
        UntaxError: naming the nodes, and the GPUs that are there.
    """
    there = max(1, len(resources.gpus))  # Without ids, commands find the one GPU by themselves.
    wanting = [node for node in nodes if node.kind in ON_GPU and node.gpus > there and not resources.cpu_only]
    if wanting:
        names, most = ", ".join(node.name for node in wanting), max(node.gpus for node in wanting)
        ids = f" ({', '.join(map(str, resources.gpus))})" if resources.gpus else ""
        raise UntaxError(
            f"{names}: {most} GPUs are wanted at once, and {len(resources.gpus) or 'none'}{ids} can be seen.",
            where="key gpus of untax.yaml, CUDA_VISIBLE_DEVICES",
            fix="Set gpus to what there is, or run this on a machine with more.",
        )


def chain_lengths(nodes: tuple[Node, ...]) -> dict[str, float]:
    """For each node the length of the longest chain that begins with it: long chains start first."""
    lengths: dict[str, float] = {}
    by_name = {node.name: node for node in nodes}
    for name in reversed([*graphlib.TopologicalSorter({node.name: node.needs for node in nodes}).static_order()]):
        after = [lengths[other.name] for other in nodes if name in other.needs]
        lengths[name] = LENGTH[by_name[name].kind] * by_name[name].share + max(after, default=0)
    return lengths


def make_room(node: Node, folder: Path) -> None:
    """Clear the way for a node's outputs. What can be made again is removed; anything else is set aside, never deleted.

    Raises:
        UntaxError: another process is training into the folder.
    """
    if node.kind == "score":
        return  # `untax eval` replaces single files itself
    for name in node.outputs:
        output = folder / name
        if not os.path.lexists(output) or (node.kind == "train" and _continues(node, output, folder)):
            continue
        if _made_again(node, output):
            shutil.rmtree(output)
        else:
            _set_aside(node, output, folder)


def _continues(node: Node, output: Path, folder: Path) -> bool:
    """Whether an interrupted training left checkpoints of the very YAML that is run now."""
    if is_claimed(output):
        raise UntaxError(
            "Another process is training into this folder.",
            where=output,
            fix="Wait for it or stop it, then run the same command again.",
        )
    begun = started_with(output)
    if begun is None or not any(output.glob("checkpoint-*")) or (output / MANIFEST_NAME).exists():
        return False
    config = folder / str(node.config)
    return begun.get("config") == digest_file(config) and not stale_inputs(begun, read_yaml(config), folder)


def _made_again(node: Node, output: Path) -> bool:
    """Whether nothing is lost with a folder: untax made it from what is still here, or it holds no weights."""
    if output.is_symlink():
        return False
    if node.kind == "train":
        return not any(output.rglob("*.safetensors"))
    try:
        manifest = read_manifest(output, manifest_name(node))
    except UntaxError:
        return False
    if manifest is not None and node.kind in ("replay", "fisher"):
        return {path.name for path in output.iterdir()} <= {*manifest["outputs"], manifest_name(node)}
    return manifest is not None


def _set_aside(node: Node, output: Path, folder: Path) -> None:
    replaced = folder / STATE / "replaced"
    replaced.mkdir(parents=True, exist_ok=True)
    places = (replaced / f"{node.name}-{number}" for number in itertools.count(1))
    os.replace(output, next(place for place in places if not os.path.lexists(place)))


def resources(device: str, *, jobs: int | None = None, threads: int | None = None) -> Resources:
    """This machine's resources: a node per GPU, or a node per core with one thread each.

    Threads are fixed, so that the same folder gives the same bytes however busy the machine is.
    """
    if device == "cuda":
        gpus = visible_gpus()
        return Resources(jobs or max(1, len(gpus)), threads or max(1, (os.cpu_count() or 1) // max(1, len(gpus))), gpus)
    return Resources(jobs or max(1, min(os.cpu_count() or 1, _memory_gib() // 3)), threads or 1, cpu_only=True)


def visible_gpus() -> tuple[int, ...]:
    """The ids of the GPUs that trainings may use."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed:
        return tuple(int(part) for part in listed.split(",") if part.strip().isdigit())
    import torch

    return tuple(range(torch.cuda.device_count()))


def _memory_gib() -> int:
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
