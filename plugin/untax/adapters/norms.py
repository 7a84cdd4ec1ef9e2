"""Norms and sparsity of deltas, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from untax.adapters.delta import LiveDelta

if TYPE_CHECKING:
    import torch

SPARSITY_THRESHOLD = 1e-5
"""|delta| below this counts as zero (PAFT, figure 2)."""


@dataclass(frozen=True)
class DeltaNorms:
    """Norms over all layers.

    Attributes:
        l1: sum of |delta| over every element of every layer.
        l2: square root of the sum of delta^2 over every element of every layer.
        sparsity: share of elements with |delta| < 1e-5, averaged over the layers as in PAFT's figure 2.
        zeros: share of elements that are exactly zero, averaged likewise.
        layers: how many layers.
    """

    l1: float
    l2: float
    sparsity: float
    zeros: float
    layers: int


def delta_norms(deltas: Iterable[LiveDelta]) -> DeltaNorms:
    """Measure deltas block by block; rows are added up in double precision. Every rank must ask for it."""
    import torch

    rows = [_of_layer(delta) for delta in deltas]
    if not rows:
        return DeltaNorms(0.0, 0.0, 0.0, 0.0, 0)
    # One transfer for all layers: .item() per layer would wait for the GPU each time.
    table = torch.stack([row.to(rows[0].device) for row in rows]).cpu()
    sums, means = table.sum(dim=0), table.mean(dim=0)
    return DeltaNorms(sums[0].item(), sums[1].sqrt().item(), means[2].item(), means[3].item(), len(rows))


def _of_layer(delta: LiveDelta) -> torch.Tensor:
    """(sum of |delta|, sum of squares, share below the threshold, share of zeros) in float64."""
    import torch

    total: torch.Tensor | None = None
    for _, block in delta.blocks():
        size = block.abs_()
        # Rows are added up in fp32, which holds counts up to 2^24, and their sums in double precision: several times as
        # fast as doubles or integers for every element.
        l1, l2 = size.sum(dim=1), torch.linalg.vector_norm(size, dim=1)
        zeros = size.shape[1] - size.sign().sum(dim=1)
        below = size.lt_(SPARSITY_THRESHOLD).sum(dim=1)
        found = torch.stack([l1, l2.double() ** 2, below, zeros]).sum(dim=1, dtype=torch.float64)
        total = found if total is None else total + found
    if total is None:
        total = torch.zeros(4, dtype=torch.float64)
    total = delta.over_ranks(total)
    total[2:] /= delta.shape[0] * delta.shape[1]
    return total
