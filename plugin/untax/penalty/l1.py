"""lambda * ||delta||_1 (PAFT, section 2.3, equation 1): the subgradient is lambda * sign(delta), and 0 at 0."""

from __future__ import annotations

from untax.adapters.delta import LiveDelta


def add_l1(delta: LiveDelta, *, weight: float) -> None:
    """Add the subgradient of ``weight * sum |delta|`` to what is trained.

    For delta = s * B @ A and S = sign(delta): d/dB = weight * s * S @ A^T, d/dA = weight * s * B^T @ S.

    Args:
        delta: of one tensor.
        weight: lambda, times the loss scale if the gradients carry one.
    """
    delta.add_gradient(lambda _, block: block.sign_(), weight)
