"""add_l2 against autograd in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from untax.adapters.delta import LowRankDelta, ParameterDelta
from untax.penalty.l2 import add_l2


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    rank=st.integers(1, 6),
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    scale=st.floats(0.01, 64),
    weight=st.floats(1e-6, 10),
)
def test_it_is_the_gradient_of_half_the_square(
    seed: int, rank: int, rows: int, columns: int, scale: float, weight: float
) -> None:
    drawn = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, columns, generator=drawn, requires_grad=True)
    b = torch.randn(rows, rank, generator=drawn, requires_grad=True)
    add_l2(LowRankDelta("layer.weight", a, b, scale), weight=weight)
    twins = [tensor.detach().double().requires_grad_() for tensor in (a, b)]
    expected = torch.autograd.grad(weight / 2 * ((scale * twins[1] @ twins[0]) ** 2).sum(), twins)
    for tensor, grad in zip((a, b), expected, strict=True):
        assert torch.allclose(tensor.grad.double(), grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max()))


def test_by_hand() -> None:
    """delta = [3, -1]: the gradient is lambda * delta, and lambda / 2 * ||delta||^2 = 5 falls along it."""
    theta = torch.nn.Parameter(torch.tensor([4.0, 1.0]))
    add_l2(ParameterDelta("norm.weight", theta, lambda rows: torch.tensor([1.0, 2.0])[rows]), weight=0.5)
    assert theta.grad.tolist() == [1.5, -0.5]


@pytest.mark.parametrize("weight", [0.1, 6553.6])
def test_it_is_linear_in_lambda(weight: float) -> None:
    """So the loss scale of fp16 may be put into it."""
    theta = torch.nn.Parameter(torch.tensor([4.0, 1.0]))
    add_l2(ParameterDelta("norm.weight", theta), weight=weight)
    assert theta.grad.tolist() == pytest.approx([4 * weight, weight])
