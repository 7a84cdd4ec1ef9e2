"""Norm and sparsity of deltas, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SPARSITY_THRESHOLD = 1e-5
"""|delta| below this counts as zero (PAFT, figure 2)."""


@dataclass(frozen=True)
class DeltaNorms:
    """Norms over all layers.

    Attributes:
        l1: sum of |delta| over every element of every layer.
        sparsity: share of elements with |delta| < 1e-5, averaged over the layers as in PAFT's figure 2.
        layers: how many layers.
    """

    l1: float
    sparsity: float
    layers: int


def delta_norms(deltas: Iterable[torch.Tensor]) -> DeltaNorms:
    """Measure deltas one at a time; sums are kept in double precision."""
    import torch

    sums, shares = [], []
    for delta in deltas:
        size = delta.abs()
        sums.append(size.sum(dtype=torch.float64))
        shares.append((size < SPARSITY_THRESHOLD).double().mean())
    if not sums:
        return DeltaNorms(0.0, 0.0, 0)
    # One transfer for all layers: .item() per layer would wait for the GPU each time.
    return DeltaNorms(torch.stack(sums).sum().item(), torch.stack(shares).mean().item(), len(sums))
