"""The chain rule from a delta back to what is trained, against autograd in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from untax.adapters import blocks
from untax.adapters.delta import LiveDelta, LowRankDelta, ParameterDelta

Loss = Callable[[torch.Tensor], torch.Tensor]
SEEDS, SIZES = st.integers(0, 2**31), st.integers(1, 12)
SCALES = st.floats(0.01, 64)
LAMBDAS = st.floats(1e-6, 10)
ELEMENTS = st.sampled_from([1, 5, 24, 1 << 18])
SHAPES = st.lists(st.integers(1, 5), max_size=4).map(tuple)
quick = settings(max_examples=60, deadline=None, derandomize=True)


@contextmanager
def block_elements(count: int) -> Iterator[None]:
    with mock.patch.object(blocks, "CPU_ELEMENTS", count):
        yield


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=generator).to(dtype)


def low_rank(
    seed: int, rank: int, rows: int, columns: int, scale: float, dtype: torch.dtype = torch.float32
) -> LowRankDelta:
    drawn = torch.Generator().manual_seed(seed)
    a, b = normal(drawn, rank, columns, dtype=dtype), normal(drawn, rows, rank, dtype=dtype)
    return LowRankDelta("layer.weight", a.requires_grad_(), b.requires_grad_(), scale)


def autograd(delta: LowRankDelta, loss: Loss) -> tuple[torch.Tensor, torch.Tensor]:
    """Of ``loss(s * B @ A)`` with respect to A and B, in float64."""
    a, b = (tensor.detach().double().requires_grad_() for tensor in (delta.a, delta.b))
    return torch.autograd.grad(loss(delta.scale * b @ a), [a, b])


def check_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()) + 1e-12)


@quick
@given(seed=SEEDS, rank=st.integers(1, 6), rows=SIZES, columns=SIZES, scale=SCALES, weight=LAMBDAS, elements=ELEMENTS)
def test_a_gradient_reaches_both_factors(
    seed: int, rank: int, rows: int, columns: int, scale: float, weight: float, elements: int
) -> None:
    """Of sum W * |delta|: another function for each element."""
    delta = low_rank(seed, rank, rows, columns, scale)
    table = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    kept = delta.a.detach().clone(), delta.b.detach().clone()
    with block_elements(elements):
        delta.add_gradient(lambda where, block: block.sign_().mul_(table[where]), weight)
    for tensor, expected in zip(
        (delta.a, delta.b), autograd(delta, lambda d: weight * (table * d.abs()).sum()), strict=True
    ):
        check_close(tensor.grad, expected)
        assert tensor.grad.dtype == torch.float32
        assert tensor.grad.grad_fn is None
    assert torch.equal(delta.a, kept[0]), "the factors are not changed"
    assert torch.equal(delta.b, kept[1]), "the factors are not changed"


@quick
@given(seed=SEEDS, rank=st.integers(1, 6), rows=SIZES, columns=SIZES, scale=SCALES, weight=LAMBDAS, elements=ELEMENTS)
def test_adding_itself_is_the_gradient_of_half_its_square(
    seed: int, rank: int, rows: int, columns: int, scale: float, weight: float, elements: int
) -> None:
    short, long = (low_rank(seed, rank, rows, columns, scale) for _ in range(2))
    with block_elements(elements):
        short.add_itself(weight)
        long.add_gradient(lambda _, block: block, weight)
    for name, expected in zip("ab", autograd(short, lambda d: weight / 2 * (d**2).sum()), strict=True):
        check_close(getattr(short, name).grad, expected)
        check_close(getattr(long, name).grad, expected)


def gradient_of_a_square(delta: LiveDelta, weight: float) -> None:
    delta.add_gradient(lambda _, block: block, weight)


WAYS = [gradient_of_a_square, lambda delta, weight: delta.add_itself(weight)]


@pytest.mark.parametrize("add", WAYS, ids=["add_gradient", "add_itself"])
def test_what_is_there_already_stays(add: Callable[[LiveDelta, float], None]) -> None:
    delta = low_rank(0, 3, 5, 4, 2.0)
    before = torch.randn(3, 4), torch.randn(5, 3)
    delta.a.grad, delta.b.grad = (grad.clone() for grad in before)
    add(delta, 0.5)
    own = autograd(delta, lambda d: 0.25 * (d**2).sum())
    check_close(delta.a.grad, before[0] + own[0])
    check_close(delta.b.grad, before[1] + own[1])


@pytest.mark.parametrize("add", WAYS, ids=["add_gradient", "add_itself"])
@pytest.mark.parametrize("frozen", ["a", "b"])
def test_a_frozen_factor_gets_nothing_and_the_other_its_own(
    add: Callable[[LiveDelta, float], None], frozen: str
) -> None:
    delta = low_rank(0, 3, 5, 4, 2.0)
    getattr(delta, frozen).requires_grad_(False)
    add(delta, 0.5)
    of_a, of_b = autograd(delta, lambda d: 0.25 * (d**2).sum())
    assert getattr(delta, frozen).grad is None
    check_close(*((delta.b.grad, of_b) if frozen == "a" else (delta.a.grad, of_a)))


@pytest.mark.parametrize("add", WAYS, ids=["add_gradient", "add_itself"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_rounded_once(add: Callable[[LiveDelta, float], None], dtype: torch.dtype) -> None:
    """However many blocks a sum is over."""
    delta = low_rank(1, 4, 40, 30, 0.5, dtype)
    start = normal(torch.Generator().manual_seed(2), 4, 30, dtype=dtype)
    delta.a.grad, delta.b.grad = start.clone(), torch.zeros(40, 4, dtype=dtype)
    with block_elements(60):
        add(delta, 0.3)
    exact = start.double() + autograd(delta, lambda d: 0.15 * (d**2).sum())[0]
    check_rounded_once(delta.a.grad, exact)


def check_rounded_once(found: torch.Tensor, exact: torch.Tensor) -> None:
    apart = (found.double() - exact.to(found.dtype).double()).abs()
    assert (apart <= torch.finfo(found.dtype).eps * exact.abs()).all(), "at most one unit in the last place"
    assert (apart == 0).double().mean() > 0.95


def test_blocks_of_a_product_are_its_rows() -> None:
    delta = low_rank(5, 3, 7, 4, 1.5)
    with block_elements(8):
        found = list(delta.blocks())
    assert [where for where, _ in found] == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7)]
    expected = 1.5 * delta.b.double() @ delta.a.double()
    check_close(torch.cat([block for _, block in found]), expected.detach())
    check_close(delta.delta(), expected.detach())
    assert delta.shape == (7, 4)
    assert float(delta.over_ranks(torch.tensor(3.0))) == 3


@quick
@given(seed=SEEDS, shape=SHAPES, weight=LAMBDAS, elements=ELEMENTS, present=st.booleans(), kept=st.booleans())
def test_a_parameter_of_any_shape(
    seed: int, shape: tuple[int, ...], weight: float, elements: int, present: bool, kept: bool
) -> None:
    """A number, vectors, matrices and convolutions; from a reference, or from zero."""
    drawn = torch.Generator().manual_seed(seed)
    theta, pretrained, start = normal(drawn, *shape).requires_grad_(), normal(drawn, *shape), normal(drawn, *shape)
    theta.grad = start.clone() if present else None
    delta = ParameterDelta(
        "layer.weight", theta, (lambda rows: pretrained[rows] if shape else pretrained) if kept else None
    )
    with block_elements(elements):
        delta.add_gradient(lambda _, block: block.sign_(), weight)
        delta.add_itself(weight)
        found = list(delta.blocks())
    twin = theta.detach().double().requires_grad_()
    change = twin - pretrained.double() if kept else twin * 1
    (expected,) = torch.autograd.grad(weight * change.abs().sum() + weight / 2 * (change**2).sum(), twin)
    check_close(theta.grad, expected + (start.double() if present else 0))
    assert theta.grad.shape == theta.shape
    rows = shape[0] if shape else 1
    assert delta.shape == (rows, theta.numel() // rows)
    assert [row for where, _ in found for row in range(where.start, where.stop)] == list(range(rows))
    check_close(torch.cat([block for _, block in found]), change.detach().reshape(delta.shape))


def test_a_reference_is_asked_for_the_rows_of_a_block_only() -> None:
    asked = []

    def reference(rows: slice) -> torch.Tensor:
        asked.append(rows)
        return torch.ones(rows.stop - rows.start, 2, 3)

    with block_elements(12):
        moved = list(ParameterDelta("conv.weight", torch.ones(5, 2, 3), reference).blocks())
    assert asked == [where for where, _ in moved] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert not any(block.any() for _, block in moved)


def test_blocks_of_a_parameter_are_copies() -> None:
    theta = torch.ones(4, 3, requires_grad=True)
    delta = ParameterDelta("layer.weight", theta, lambda rows: torch.zeros(4, 3)[rows])
    delta.add_gradient(lambda _, block: block.zero_(), 1.0)
    assert theta.detach().eq(1).all()


def test_a_frozen_parameter_gets_nothing() -> None:
    theta = torch.ones(4, 3)
    delta = ParameterDelta("layer.weight", theta)
    delta.add_gradient(lambda _, block: block, 1.0)
    delta.add_itself(1.0)
    assert theta.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gradient_of_a_half_precision_parameter_is_rounded_once(dtype: torch.dtype) -> None:
    drawn = torch.Generator().manual_seed(4)
    theta, pretrained, start = (normal(drawn, 40, 30, dtype=dtype) for _ in range(3))
    theta.requires_grad_()
    theta.grad = start.clone()
    delta = ParameterDelta("layer.weight", theta, lambda rows: pretrained[rows])
    delta.add_gradient(lambda _, block: block, 0.3)
    assert theta.grad.dtype == dtype
    check_rounded_once(theta.grad, start.double() + 0.3 * (theta.detach().double() - pretrained.double()))
