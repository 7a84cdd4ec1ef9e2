"""Election of a sign for each element, and the sum over the deltas that agree with it (TIES, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def elect(deltas: torch.Tensor, weights: Sequence[float], *, normalize: bool) -> torch.Tensor:
    """Sum of the weighted deltas whose sign is the elected one, divided by the sum of their weights if asked.

    The elected sign is that of the sum of weight * delta, and + where that is 0; a delta of 0 agrees with nothing.

    Args:
        deltas: shape (K, n, columns); overwritten.
        weights: K of them.
        normalize: divide by the weights that agree, where these do not sum to 0.
    """
    import torch

    for delta, weight in zip(deltas, weights, strict=True):
        if weight != 1:
            delta.mul_(weight)
    total = deltas.sum(dim=0)
    # +0.0, not -0.0: copysign would elect minus for a sum of nothing but negative zeros.
    elected = torch.copysign(torch.ones_like(total), total.add_(0.0))
    merged, divisor = torch.zeros_like(total), torch.zeros_like(total)
    for delta, weight in zip(deltas, weights, strict=True):
        agreeing = delta.mul_(elected).relu_()
        merged.add_(agreeing)
        if normalize:
            divisor.add_(agreeing.sign_(), alpha=weight)
    if normalize:
        merged.div_(torch.where(divisor == 0, 1.0, divisor))
    return merged.mul_(elected)
