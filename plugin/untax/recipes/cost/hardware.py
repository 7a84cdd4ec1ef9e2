"""GPUs that hours are estimated for, by their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass

GB = 10**9
GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: as it is called.
        matched: what the driver's name for it has in it, in capitals.
        flops: peak of bf16 matrix products without sparsity, per second.
        memory: bytes.
    """

    name: str
    matched: tuple[str, ...]
    flops: float
    memory: int


GPUS = (
    Gpu("H200", ("H200",), 989e12, 141 * GB),
    Gpu("H100 PCIe", ("H100", "PCIE"), 756e12, 80 * GIB),
    Gpu("H100", ("H100",), 989e12, 80 * GIB),
    Gpu("A100", ("A100",), 312e12, 80 * GIB),
    Gpu("L40S", ("L40S",), 362e12, 48 * GIB),
    Gpu("RTX 4090", ("4090",), 165e12, 24 * GIB),
    Gpu("RTX 3090", ("3090",), 71e12, 24 * GIB),
)
"""NVIDIA's data sheets: dense bf16 with fp32 accumulation; half of what they give with sparsity."""

DEFAULT_GPU = next(gpu for gpu in GPUS if gpu.name == "A100")
"""What is estimated for where no GPU is at hand."""


def gpu_named(name: str) -> Gpu | None:
    """The GPU that a driver's name, such as ``NVIDIA A100-SXM4-80GB``, stands for; None for one that is not listed."""
    capitals = name.upper()
    return next((gpu for gpu in GPUS if all(part in capitals for part in gpu.matched)), None)
