"""What this machine has for the nodes of a graph, and what each of them needs of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from untax.errors import UntaxError
from untax.recipes.graph import Node
from untax.run.usage import nvml

GIB = 2**30
ON_GPU = ("train", "score", "fisher")
"""Kinds of nodes that compute on a GPU where there is one."""
TOOLS_BYTES = 3 * GIB // 2
"""What a command holds before it has loaded a model: Axolotl, PyTorch, lm-eval. Measured: 0.9 to 1.3 GiB."""
# Main memory beside that, in copies of the base's stored weights. On a CPU a training in fp32 from a bf16 base holds 2
# for the weights and as much again while they are loaded; a merge holds what cannot be streamed.
COPIES = {"disperse": 0.0, "replay": 0.0, "train": 4.0, "fisher": 4.0, "merge": 1.0, "score": 2.0}


@dataclass(frozen=True)
class Resources:
    """What the nodes may use.

    Attributes:
        jobs: nodes on the CPU at a time; with ``at_most`` all nodes.
        threads: threads of each, which its numbers may depend on.
        gpus: ids, of which each training takes as many as its node says, and each scoring and statistic one; none on a
            CPU.
        cpu_only: whether GPUs that are there are to be left alone.
        memory: bytes of main memory for all of them; 0 for as much as they take.
        at_most: the most nodes of any kind at a time; 0 for no limit of its own.
    """

    jobs: int
    threads: int
    gpus: tuple[str, ...] = ()
    cpu_only: bool = False
    memory: int = 0
    at_most: int = 0

    def on_gpu(self, node: Node) -> bool:
        """Whether the node takes GPUs of these."""
        return bool(self.gpus) and node.kind in ON_GPU


@dataclass
class Needs:
    """Main memory that nodes need: what they took in an earlier run, else an estimate.

    Attributes:
        base: bytes of the base's weight files; 0 if they are not on this machine.
        measured: node -> bytes at most in an earlier run.
    """

    base: int = 0
    measured: Mapping[str, int] = field(default_factory=dict)

    def memory(self, node: Node, *, on_gpu: bool = False) -> int:
        """Bytes of main memory. A model that is computed on a GPU passes through main memory once."""
        if node.name in self.measured:
            return self.measured[node.name]
        copies = 1.0 if on_gpu else COPIES[node.kind]
        return TOOLS_BYTES + int(copies * self.base)


def weights_bytes(base: str, folder: Path) -> int:
    """Bytes of a local model's weight files, and 0 for anything else."""
    place = folder / base
    return sum(file.stat().st_size for file in place.glob("*.safetensors")) if place.is_dir() else 0


def check_gpus(nodes: Sequence[Node], resources: Resources) -> None:
    """Refuse a graph with a node that could never start.

    Raises:
        UntaxError: naming the nodes, and the GPUs that are there.
    """
    there = len(resources.gpus) or int(_has_other_accelerator(resources))
    wanting = [node for node in nodes if node.kind in ON_GPU and node.gpus > there and not resources.cpu_only]
    if wanting:
        names, most = ", ".join(node.name for node in wanting), max(node.gpus for node in wanting)
        ids = f" ({', '.join(resources.gpus)})" if resources.gpus else ""
        raise UntaxError(
            f"{names}: {most} GPUs are wanted at once, and {len(resources.gpus) or 'none'}{ids} can be seen.",
            where="key gpus of untax.yaml, --gpus, CUDA_VISIBLE_DEVICES",
            fix="Set gpus to what there is, or run this on a machine with more; `device: cpu` leaves GPUs aside.",
        )
    missing = [gpu for gpu in resources.gpus if gpu.isdigit() and int(gpu) >= (_driver_count() or int(gpu) + 1)]
    if missing:
        raise UntaxError(
            f"There is no GPU {', '.join(missing)}: this machine has {_driver_count()}, counted from 0.",
            where="--gpus, CUDA_VISIBLE_DEVICES",
            fix="Name those that `nvidia-smi` lists. Nodes would compute on the CPU otherwise.",
        )


def _has_other_accelerator(resources: Resources) -> bool:
    """Whether there is one that CUDA_VISIBLE_DEVICES does not number, which commands find by themselves."""
    if resources.cpu_only:
        return False
    import torch

    return bool(torch.accelerator.is_available())


def _driver_count() -> int | None:
    """How many GPUs NVIDIA's driver knows, or None where it cannot be asked."""
    with nvml() as driver:
        return int(driver.nvmlDeviceGetCount()) if driver else None
    return None


def resources(
    device: str,
    *,
    jobs: int | None = None,
    threads: int | None = None,
    gpus: Sequence[str] | None = None,
    memory: int | None = None,
) -> Resources:
    """This machine's resources: a node per GPU, or a node per core with one thread each.

    Threads are fixed, so that the same folder gives the same bytes however busy the machine is.

    Args:
        device: ``cuda`` or ``cpu``, as the recipe says.
        jobs: the most nodes at a time.
        threads: of each node.
        gpus: the ids to use; those that can be seen by default.
        memory: bytes of main memory to use; nine tenths of what there is by default.

    Raises:
        UntaxError: GPUs are named for a recipe that leaves them aside.
    """
    cores, most = _cores(), memory or _memory() * 9 // 10
    if device != "cuda" and gpus is not None:
        raise UntaxError(
            f"GPUs {', '.join(gpus)} are named, and this recipe is one for the CPU.",
            where="--gpus, key device of untax.yaml",
            fix="Leave --gpus out, or set `device: cuda` and write the YAMLs again (untax recipe --from untax.yaml).",
        )
    if device != "cuda":
        threads = threads or 1
        return Resources(jobs or max(1, cores // threads), threads, cpu_only=True, memory=most, at_most=jobs or 0)
    ids = tuple(gpus) if gpus is not None else visible_gpus()
    threads = threads or max(1, cores // max(1, len(ids)))
    return Resources(jobs or max(1, cores // threads), threads, ids, memory=most, at_most=jobs or 0)


def visible_gpus() -> tuple[str, ...]:
    """The ids of the GPUs that nodes may use: numbers, or the UUIDs that CUDA_VISIBLE_DEVICES names."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return tuple(part.strip() for part in listed.split(",") if part.strip() and part.strip() != "-1")
    import torch

    return tuple(str(number) for number in range(torch.cuda.device_count()))


def _cores() -> int:
    """Cores that this process may use, which is what `taskset` and SLURM leave of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int:
    """Bytes of main memory, or of the container's part of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            total = min(total, int(file.read_text()))
        except (OSError, ValueError):
            continue
    return total
