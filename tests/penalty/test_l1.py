"""add_l1 against autograd in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from untax.adapters.delta import LowRankDelta
from untax.penalty.l1 import add_l1


def factors_of(
    seed: int, rank: int, rows: int, columns: int, scale: float, dtype: torch.dtype = torch.float32
) -> LowRankDelta:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, columns, generator=generator).to(dtype).requires_grad_()
    b = torch.randn(rows, rank, generator=generator).to(dtype).requires_grad_()
    return LowRankDelta("layer", a, b, scale)


def autograd(factors: LowRankDelta, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = (tensor.detach().double().requires_grad_() for tensor in (factors.a, factors.b))
    return torch.autograd.grad(weight * (factors.scale * b @ a).abs().sum(), [a, b])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    rank=st.integers(1, 6),
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    scale=st.floats(0.01, 64),
    weight=st.floats(1e-6, 10),
    present=st.booleans(),
)
def test_equals_autograd(
    seed: int, rank: int, rows: int, columns: int, scale: float, weight: float, present: bool
) -> None:
    factors = factors_of(seed, rank, rows, columns, scale)
    before = [torch.randn_like(tensor) if present else None for tensor in (factors.a, factors.b)]
    factors.a.grad, factors.b.grad = (None if grad is None else grad.clone() for grad in before)
    kept = factors.a.detach().clone(), factors.b.detach().clone()
    add_l1(factors, weight=weight)
    for tensor, grad, expected in zip((factors.a, factors.b), before, autograd(factors, weight), strict=True):
        added = tensor.grad.double() - (0 if grad is None else grad.double())
        tolerance = 1e-5 * float(expected.abs().max()) + 1e-6
        assert torch.allclose(added, expected, rtol=1e-5, atol=tolerance)
    assert torch.equal(factors.a, kept[0]), "the factors are not changed"
    assert torch.equal(factors.b, kept[1]), "the factors are not changed"


def test_the_subgradient_at_zero_is_zero() -> None:
    factors = factors_of(0, 3, 5, 4, 2.0)
    with torch.no_grad():
        factors.b.zero_()
    add_l1(factors, weight=1.0)
    assert not factors.a.grad.any()
    assert not factors.b.grad.any()


def test_a_frozen_factor_gets_nothing() -> None:
    factors = factors_of(0, 3, 5, 4, 2.0)
    factors.a.requires_grad_(False)
    add_l1(factors, weight=1.0)
    assert factors.a.grad is None
    assert factors.b.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_rounded_once(dtype: torch.dtype) -> None:
    factors = factors_of(1, 4, 40, 30, 0.5, dtype)
    start = torch.randn(4, 30).to(dtype)
    factors.a.grad, factors.b.grad = start.clone(), torch.zeros(40, 4, dtype=dtype)
    add_l1(factors, weight=0.3)
    expected = (start.double() + autograd(factors, 0.3)[0]).to(dtype)
    apart = (factors.a.grad.double() - expected.double()).abs()
    assert (apart <= torch.finfo(dtype).eps * expected.double().abs()).all(), "at most one unit in the last place"
    assert (apart == 0).double().mean() > 0.95


def test_no_graph_is_kept() -> None:
    factors = factors_of(2, 2, 8, 8, 1.0)
    add_l1(factors, weight=1.0)
    assert factors.a.grad.grad_fn is None
    assert not factors.a.grad.requires_grad
