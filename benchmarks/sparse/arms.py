"""The trainings of the sweep: one line per penalty and strength."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One training.

    Attributes:
        kind: the family it is drawn with.
        keys: what differs from dense SFT.
        steps: optimizer steps.
        seed: of the LoRA initialisation and of the order of the rows.
    """

    kind: str
    keys: dict[str, Any] = field(default_factory=dict)
    steps: int = 300
    seed: int = 42

    @property
    def name(self) -> str:
        parts = [self.kind, *(f"{key.removeprefix('delta_')}={value}" for key, value in self.keys.items())]
        return " ".join([*parts, f"steps={self.steps}", f"seed={self.seed}"])


def arms(fisher: str) -> Iterator[Arm]:
    """Every arm; ``fisher`` is the path of the base's Fisher information."""
    yield from (Arm("dense", seed=seed) for seed in (42, 43, 44))
    for weight in (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2):
        yield Arm("l1 product", {"delta_l1": weight})
    for weight in (1e-4, 1e-3, 3e-3, 1e-2):
        yield Arm("l1 factors", {"delta_l1": weight, "delta_target": "factors"})
    for weight in (1e-2, 1e-1, 1.0):
        yield Arm("l2", {"delta_l2": weight})
    for weight in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        yield Arm("ewc", {"delta_ewc": weight, "delta_ewc_fisher": fisher})
    for share in (0.5, 0.9):
        yield Arm("pruned", {"delta_sparsity": share})
    faster = {"learning_rate": 3e-3}
    for share in (0.5, 0.8, 0.9, 0.95):
        yield Arm("pruned, 3 x learning rate", {"delta_sparsity": share, **faster})
    for seed in (43, 44):
        yield Arm("pruned, 3 x learning rate", {"delta_sparsity": 0.9, **faster}, seed=seed)
    yield Arm("dense, 3 x learning rate", faster)
    constant = {"lr_scheduler": "constant"}
    yield Arm("dense, constant learning rate", constant)
    for weight in (1e-4, 1e-3):
        yield Arm("l1 product, constant learning rate", {"delta_l1": weight, **constant})
    yield Arm("dense", steps=1200)
    yield Arm("pruned, 3 x learning rate", {"delta_sparsity": 0.9, **faster}, steps=1200)
