"""The GPUs of this machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VisibleGpu:
    """A GPU that torch can use: its name as the driver says it, and its memory in bytes."""

    name: str
    memory: int


def visible_gpus() -> list[VisibleGpu]:
    """The GPUs that trainings may use; none where torch sees none."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [VisibleGpu(card.name, card.total_memory) for card in found]
