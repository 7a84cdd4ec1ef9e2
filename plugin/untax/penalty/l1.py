"""The subgradient of weight * ||s * B @ A||_1 (PAFT, equation 1), one layer at a time.

With D = s * B @ A and S = sign(D), where sign(0) = 0:

    d/dB = weight * s * S @ A^T        d/dA = weight * s * B^T @ S
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from untax.adapters.live import Factors

if TYPE_CHECKING:
    import torch


def add_l1_subgradient(factors: Factors, *, weight: float) -> None:
    """Add the subgradient to the ``.grad`` of one layer's factors, in place.

    The extra memory is one fp32 matrix of the layer's shape; no graph is kept.

    Args:
        factors: A of shape (r, in) and B of shape (out, r).
        weight: lambda, times the loss scale if the gradients carry one.
    """
    sign = factors.delta().sign_()
    a, b = factors.a.detach().float(), factors.b.detach().float()
    _add(factors.b, sign @ a.T, weight * factors.scale)
    _add(factors.a, b.T @ sign, weight * factors.scale)


def _add(parameter: torch.Tensor, direction: torch.Tensor, weight: float) -> None:
    if not parameter.requires_grad:
        return
    if parameter.grad is None:
        parameter.grad = (direction * weight).to(parameter.dtype)
    else:
        # In place and mixed: a bf16 gradient takes the fp32 product and is rounded once.
        parameter.grad.add_(direction, alpha=weight)
