"""Nodes on a Ray cluster: each is one Ray task with its resources, started again elsewhere when its machine dies."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import signal
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import untax
from untax.errors import UntaxError
from untax.files import write_text
from untax.recipes.graph import Node
from untax.run.process import STOP_SECONDS
from untax.run.ray_cluster import ask_for, connect, machines
from untax.run.ray_task import MOST_ATTEMPTS, SHARED_SECONDS, Work, place_path, read_place, run_node
from untax.run.resources import GIB, ON_GPU, Needs, Resources
from untax.run.workers import Ended, Running, Usage, log_path

# Of the driver's environment only what users set for the tools; all else is each machine's own.
PASSED = (
    "HF_",
    "TRANSFORMERS_",
    "AXOLOTL_",
    "ACCELERATE_",
    "UNTAX_",
    "WANDB_",
    "MLFLOW_",
    "COMET_",
    "PYTORCH_",
    "NCCL_",
)
LOOK_SECONDS = 1.0
WAIT_SECONDS = 5.0


class RayRunning:
    """A node's Ray task.

    Attributes:
        node: the node.
        log: where its output goes.
        ref: Ray's name for what it will return.
        gpus: the ids of its GPUs, on its machine.
        where: its machine, unless that is this one.
    """

    note = ""  # Room is made by the worker, when and where there is a place.

    def __init__(self, node: Node, folder: Path, ref: Any):
        self.node, self.folder, self.ref = node, folder, ref
        self.log = log_path(folder, node)
        self.where, self.gpus = "", tuple[str, ...]()
        self.attempts = 0
        self._started = self._looked = 0.0
        self._arrived: float | None = None
        self._ended: Ended | None = None

    @property
    def seconds(self) -> float:
        """How long its last attempt has been running; 0 while it waits for a place."""
        return time.monotonic() - self._started if self.attempts else 0.0

    def poll(self) -> Ended | None:
        """Its end, or None while it waits or is at work."""
        import ray

        if self._ended is None:
            try:
                over = bool(ray.wait([self.ref], timeout=0)[0])
            except (ray.exceptions.RayError, ConnectionError) as error:
                self._ended = self._lost(f"the Ray cluster is gone: {' '.join(str(error).split())}", 2)
                return self._ended
            self._look(at_once=over)
            if over:
                self._ended = self._end()
        return self._ended

    def _look(self, *, at_once: bool) -> None:
        """See who works on it, and where."""
        if not at_once and time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        lines = read_place(place_path(self.folder, self.node.name))
        if len(lines) - 1 > self.attempts:
            self.attempts, self._started = len(lines) - 1, time.monotonic()
            self.gpus = tuple(lines[-1]["gpus"])
            self.where = lines[-1]["host"] if lines[-1]["host"] != platform.node() else ""

    def _end(self) -> Ended | None:
        """What came of it; None while files that its machine sees are not here yet."""
        import ray

        try:
            ended, made = ray.get(self.ref)
        except ray.exceptions.TaskCancelledError:
            return self._lost("was stopped", -signal.SIGTERM)
        except ray.exceptions.RayTaskError as error:
            return self._lost(_reason(error), 2)
        except ray.exceptions.RayError as error:
            return self._lost(f"its worker was lost: {' '.join(str(error).split())}", 2)
        now = time.monotonic()
        self._arrived = self._arrived or now
        missing = [name for name in made if not (self.folder / name).exists()]
        for name in missing:
            # An NFS client that remembers "no such file" asks its server again when the folder is listed.
            os.listdir(next(place for place in (self.folder / name).parents if place.is_dir()))
        return None if missing and now - self._arrived < SHARED_SECONDS else ended

    def _lost(self, problem: str, code: int) -> Ended:
        return Ended(code, Usage(self.seconds), attempts=max(1, self.attempts), problem=problem)


class RayWorkers:
    """The machines of a Ray cluster.

    Args:
        folder: the run folder, on a file system that they share.
        resources: threads of a node, and whether GPUs are left alone; of a cluster that is started here, all of it.
        address: of the cluster; by default RAY_ADDRESS, or what runs on this machine, or a cluster of this machine
            alone. ``local`` always means the last.
        jobs: the most nodes at a time; by default as many as the cluster takes.
        needs: what nodes need of main memory.
        wait: seconds to wait for machines that a node needs and that have not joined yet.

    Raises:
        UntaxError: there is no such cluster, or Ray is not installed.
    """

    def __init__(
        self,
        folder: Path,
        resources: Resources,
        address: str | None = None,
        jobs: int | None = None,
        *,
        needs: Needs | None = None,
        wait: float = 0.0,
    ):
        self.folder, self.resources, self.jobs = folder.resolve(), resources, jobs or resources.at_most
        self.needs, self.wait = needs or Needs(), wait
        self.started_here = connect(address, resources)
        self._running: list[RayRunning] = []

    def describe(self) -> str:
        """Which cluster, and what it has."""
        import ray

        there = machines()
        total = {key: sum(machine[key] for machine in there) for key in ("CPU", "GPU", "memory")}
        name = "started for this run" if self.started_here else f"at {ray.get_runtime_context().gcs_address}"
        most = f", at most {self.jobs} nodes at a time" if self.jobs else ""
        return (
            f"Ray cluster {name}: {len(there)} machine(s), {total['CPU']:.0f} CPUs, {total['GPU']:.0f} GPUs, "
            f"{total['memory'] / GIB:.0f} GiB of memory, {self.resources.threads} thread(s) each{most}"
        )

    def check(self, nodes: Sequence[Node]) -> None:
        """Refuse a node that fits on no machine: Ray would wait for one for ever.

        Raises:
            UntaxError: naming the nodes, and what the machines have.
        """
        deadline = time.monotonic() + self.wait
        if self.wait:
            ask_for([self._request(node) for node in nodes])
        try:
            while homeless := [node for node in nodes if not self._homes(node)]:
                if time.monotonic() >= deadline:
                    raise self._too_large(homeless)
                time.sleep(LOOK_SECONDS)
        finally:
            if self.wait:
                ask_for([])

    def start(self, node: Node) -> Running | None:
        """Give a node to Ray, which starts it as soon as a machine has room for it.

        Raises:
            UntaxError: no file can be written in the run folder.
        """
        import ray

        self._running = [one for one in self._running if one.poll() is None]
        if self.jobs and len(self._running) >= self.jobs:
            return None
        nonce = uuid.uuid4().hex
        write_text(place_path(self.folder, node.name), json.dumps({"nonce": nonce}) + "\n")
        passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
        work = Work(dataclasses.asdict(node), str(self.folder), nonce, self.resources.threads, passed)
        task = ray.remote(run_node).options(**self._options(node))
        running = RayRunning(node, self.folder, task.remote(untax.__version__, dataclasses.asdict(work)))
        self._running.append(running)
        return running

    def stop(self, running: Sequence[Running]) -> None:
        """End nodes: a task that is cancelled stops its command before it ends itself."""
        import ray

        refs = [one.ref for one in running if isinstance(one, RayRunning) and one.poll() is None]
        for force, seconds in ((False, STOP_SECONDS + WAIT_SECONDS), (True, STOP_SECONDS)):
            for ref in refs:
                ray.cancel(ref, force=force)
            if refs:
                refs = ray.wait(refs, num_returns=len(refs), timeout=seconds)[1]

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        import ray

        ray.shutdown()

    def _request(self, node: Node) -> dict[str, float]:
        gpus = 0 if self.resources.cpu_only or node.kind not in ON_GPU else node.gpus
        return {"CPU": self.resources.threads, "GPU": gpus}

    def _homes(self, node: Node) -> list[dict[str, float]]:
        """The machines on which a node fits."""
        request = self._request(node)
        return [one for one in machines() if all(one[key] >= request[key] for key in request)]

    def _options(self, node: Node) -> dict[str, Any]:
        request = self._request(node)
        most = max((home["memory"] for home in self._homes(node)), default=0.0)
        return {
            "name": node.name,
            "num_cpus": request["CPU"],
            "num_gpus": request["GPU"],
            # One for which no machine has enough takes the whole of the largest.
            "memory": int(min(self.needs.memory(node, on_gpu=request["GPU"] > 0), most)) or None,
            "max_retries": MOST_ATTEMPTS - 1,
            "retry_exceptions": False,
            # Apart, each has its machine's memory to itself; GPUs are taken machine by machine, or trainings on one
            # each would leave no machine free for one on many.
            "scheduling_strategy": "DEFAULT" if request["GPU"] else "SPREAD",
        }

    def _too_large(self, nodes: Sequence[Node]) -> UntaxError:
        wanted = "; ".join(
            f"{node.name} {self._request(node)['CPU']:.0f} CPUs, {self._request(node)['GPU']:.0f} GPUs"
            for node in nodes
        )
        there = "; ".join(sorted(f"{one['CPU']:.0f} CPUs, {one['GPU']:.0f} GPUs" for one in machines()))
        return UntaxError(
            f"No machine of the Ray cluster has what these nodes want: {wanted}. The machines have: {there or 'none'}.",
            where="keys gpus and device of untax.yaml, --threads",
            fix="Add such a machine to the cluster, or lower gpus or --threads.",
        )


def _reason(error: Any) -> str:
    """Why a task failed by itself: its UntaxError, or the last line that Ray has of it."""
    if isinstance(error.cause, UntaxError):
        return str(error.cause)
    if "No module named 'untax" in str(error):
        return "untax is not installed in the Python of a worker: install the same version there"
    return f"failed on its worker: {' '.join(str(error).splitlines()[-1:])}"
