"""lambda / 2 * sum F * delta^2: elastic weight consolidation, a baseline of Disperse-Then-Merge (section 5.1).

F is the diagonal Fisher information of the base on text like that of its pretraining (Kirkpatrick et al. 2017,
equation 3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from untax.adapters.delta import LiveDelta

if TYPE_CHECKING:
    import torch

    from untax.adapters.statistics import Diagonal


def add_ewc(delta: LiveDelta, *, weight: float, fisher: Diagonal) -> None:
    """Add the gradient of ``weight / 2 * sum F * delta^2`` to what is trained; F is read block by block.

    Args:
        delta: of one tensor, the same way round as in the base.
        weight: lambda, times the loss scale if the gradients carry one.
        fisher: the diagonal, with a tensor of the delta's name and shape.
    """

    def gradient(rows: slice, block: torch.Tensor) -> torch.Tensor:
        return block.mul_(fisher.rows(delta.name, rows).to(block.device).reshape(block.shape))

    delta.add_gradient(gradient, weight)
