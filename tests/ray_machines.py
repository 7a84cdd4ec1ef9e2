"""A real Ray cluster on this machine: a head without room for nodes, and machines that are processes of their own."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

SMALL = {"object_store_memory": 80 * 2**20}


class Machines:
    """The cluster's machines; one that was killed is replaced by a new one."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **SMALL}
        )
        self.address: str = self.cluster.address

    def add(self, **has: Any) -> Any:
        return self.cluster.add_node(**{"num_cpus": 1, **SMALL, **has})

    def kill(self, machine: Any) -> None:
        """Take the power from a machine: everything that runs on it ends at once, and nothing is told."""
        processes = [info.process.pid for infos in machine.all_processes.values() for info in infos]
        doomed = [psutil.Process(pid) for pid in processes]
        doomed = [*doomed, *(child for one in doomed for child in one.children(recursive=True))]
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self.cluster.remove_node(machine, allow_graceful=False)

    def machine_of(self, pid: int) -> Any:
        """The machine on which a worker or a command runs."""
        above = {one.pid for one in psutil.Process(pid).parents()}
        for machine in self.cluster.worker_nodes:
            if above & {info.process.pid for infos in machine.all_processes.values() for info in infos}:
                return machine
        raise AssertionError(f"process {pid} is on no machine")


@contextlib.contextmanager
def machines() -> Iterator[Machines]:
    made = Machines()
    try:
        yield made
    finally:
        made.cluster.shutdown()


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found
