"""lambda / 2 * ||delta||_2^2: the L2-norm baseline of Disperse-Then-Merge (section 5.1)."""

from __future__ import annotations

from untax.adapters.delta import LiveDelta


def add_l2(delta: LiveDelta, *, weight: float) -> None:
    """Add the gradient of ``weight / 2 * sum delta^2`` to what is trained: EWC with a Fisher information of 1.

    Args:
        delta: of one tensor.
        weight: lambda, times the loss scale if the gradients carry one.
    """
    delta.add_itself(weight)
