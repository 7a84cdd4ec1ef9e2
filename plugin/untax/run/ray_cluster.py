"""The Ray cluster that a run uses: one that is there, or one of this machine alone that ends with the run."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from untax.errors import UntaxError
from untax.run.resources import Resources

OBJECT_STORE_BYTES = 80 * 2**20
"""Nothing large goes through Ray: nodes exchange files. It takes no less than 75 MiB."""

ANSWER_SECONDS = 20.0


def connect(address: str | None, resources: Resources) -> bool:
    """Join the cluster at ``address``, or without one that of RAY_ADDRESS or of this machine, or else start one here.

    Returns:
        Whether the cluster was started here, and ends with this process.

    Raises:
        UntaxError: Ray is not installed, is of another version there, or no cluster answers.
    """
    _check_installed()
    # Ray reports its use to its makers unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray warns that it will once leave CUDA_VISIBLE_DEVICES alone where no GPU was asked for; it is set anyway.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address and address.startswith("ray://"):
        raise UntaxError(
            "ray:// is Ray Client, which loses a run when its connection breaks.",
            where=f"--ray-address {address}",
            fix="Run this on a machine of the cluster, with the address HOST:6379 or auto.",
        )
    named = address or os.environ.get("RAY_ADDRESS")
    with _own_signals():
        if address == "local":
            return _start(resources)
        try:
            _check_answers(named)
            _init(named or "auto")
        except ConnectionError as error:
            if named:
                raise _no_cluster(named, error) from error
            return _start(resources)
        except (OSError, RuntimeError, ValueError) as error:
            raise _no_cluster(named, error) from error
    return False


def machines() -> list[dict[str, float]]:
    """What each living machine of the cluster has: CPU, GPU, memory in bytes."""
    import ray

    return [
        {key: float(machine["Resources"].get(key, 0)) for key in ("CPU", "GPU", "memory")}
        for machine in ray.nodes()
        if machine["Alive"]
    ]


def ask_for(nodes: list[dict[str, float]]) -> None:
    """Tell an autoscaler, if the cluster has one, to have machines for these; an empty list takes that back."""
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=nodes)


def _check_installed() -> None:
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise UntaxError(
            "Ray is not installed here.", where=sys.executable, fix="pip install 'untax[ray]', on every machine."
        ) from error


def _check_answers(address: str | None) -> None:
    """Ray itself tries for minutes, and then may take its process along."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()


def _init(address: str, **options: Any) -> None:
    import ray
    import ray._private.worker

    # The ends of workers are news of the nodes, which the engine tells; Ray would write pages over the screen.
    ray._private.worker._worker_logs_enabled = False
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except BaseException:
        ray.shutdown()  # It may have got half-way.
        raise


def _start(resources: Resources) -> bool:
    if resources.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(resources.gpus)
    _init(
        "local",
        num_cpus=resources.jobs * resources.threads,
        num_gpus=0 if resources.cpu_only else len(resources.gpus),
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
    )
    return True


def _no_cluster(address: str | None, error: Exception) -> UntaxError:
    mismatch = "ersion mismatch" in str(error)
    reason = " ".join(str(error).split())
    return UntaxError(
        f"Ray's cluster cannot be joined: {reason}",
        where=f"--ray-address {address}" if address else "RAY_ADDRESS, or the cluster of this machine",
        fix="Have one version of Python and of Ray on all machines, as constraints.txt says."
        if mismatch
        else "Start it with `ray start --head`, name it with --ray-address, or have one here: --ray-address local.",
    )


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray puts a handler of its own for SIGTERM; the run's is put back."""
    here = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if here else None
    try:
        yield
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)
