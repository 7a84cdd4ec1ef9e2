"""The k-th largest magnitude, against sorting."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from untax.adapters import threshold
from untax.adapters.threshold import kth_largest
from untax.errors import UntaxError

# As many elements as a bracket needs: more than a block of the real size would take long to draw.
BLOCK = 64


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threshold, "CPU_ELEMENTS", BLOCK)


def in_blocks(values: torch.Tensor, size: int = BLOCK) -> Callable[[], Iterable[torch.Tensor]]:
    return lambda: (part.clone() for part in values.split(size))


def by_sorting(values: torch.Tensor, k: int) -> float:
    ordered = np.sort(np.abs(values.numpy()))[::-1]
    return float(ordered[min(k, len(ordered)) - 1])


def drawn(seed: int, count: int, kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator)
    if kind == "ties":
        return (2 * values).round() / 2
    if kind == "sparse":
        return values * (torch.rand(count, generator=generator) < 0.1)
    if kind == "sorted":
        return values.sort().values
    if kind == "rows":
        return values * torch.logspace(-30, 30, count)
    if kind == "infinite":
        return torch.where(values > 1.5, math.inf, values)
    if kind == "denormal":
        return values * 1e-42
    return values


KINDS = ("normal", "ties", "sparse", "sorted", "rows", "infinite", "denormal")


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 6000), share=st.floats(0, 1.1), kind=st.sampled_from(KINDS))
def test_equals_sorting(seed: int, count: int, share: float, kind: str) -> None:
    values = drawn(seed, count, kind)
    k = max(1, int(share * count))
    assert kth_largest(in_blocks(values), count, k) == by_sorting(values, k)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 2000), share=st.floats(0, 1), kind=st.sampled_from(KINDS))
def test_digit_by_digit_equals_sorting(seed: int, count: int, share: float, kind: str) -> None:
    values = drawn(seed, count, kind)
    k = max(1, int(share * count))
    with pytest.MonkeyPatch.context() as patch:
        # A bracket that always misses.
        patch.setattr(threshold, "_bracket", lambda sample, share: (math.inf, math.inf))
        assert kth_largest(in_blocks(values), count, k) == by_sorting(values, k)


@pytest.mark.parametrize("bounds", [(3.0, 4.0), (-1.0, 0.001), (-1.0, math.inf)])
def test_a_bracket_too_high_too_low_or_too_wide_is_no_error(
    monkeypatch: pytest.MonkeyPatch, bounds: tuple[float, float]
) -> None:
    values = drawn(0, 50_000, "normal")
    calls = []
    monkeypatch.setattr(threshold, "_bracket", lambda sample, share: bounds)
    by_digits = threshold._by_digits
    monkeypatch.setattr(threshold, "_by_digits", lambda *given: calls.append(1) or by_digits(*given))
    assert kth_largest(in_blocks(values), len(values), 5000) == by_sorting(values, 5000)
    assert calls == [1]


def test_the_bracket_is_enough_and_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two passes for a product of factors, in which rows differ in size; few elements within the bracket."""
    torch.manual_seed(0)
    product = (torch.randn(512, 8) * torch.logspace(-2, 2, 512)[:, None]) @ torch.randn(8, 1024)
    passes = []

    def blocks() -> Iterable[torch.Tensor]:
        passes.append(1)
        return iter(product.split(8))

    for share in (0.01, 0.1, 0.2, 0.5, 0.9):
        k = int(share * product.numel())
        assert kth_largest(blocks, product.numel(), k) == by_sorting(product.flatten(), k)
        sample = threshold._sample(iter([product.abs().flatten().numpy()]), product.numel())
        low, high = threshold._bracket(sample, share)
        within = ((product.abs() > low) & (product.abs() < high)).float().mean()
        assert within < 0.06
    assert len(passes) == 2 * 5


def test_all_zero() -> None:
    assert kth_largest(in_blocks(torch.zeros(10_000)), 10_000, 1000) == 0.0


def test_blocks_stay_as_they_are() -> None:
    values = drawn(1, 5000, "normal")
    before = values.clone()
    kth_largest(lambda: values.split(100), 5000, 100)
    assert torch.equal(values, before)


@pytest.mark.parametrize("place", [0, 77, 4999])
@pytest.mark.parametrize("count", [5000, BLOCK])
def test_a_nan_is_refused(count: int, place: int) -> None:
    values = drawn(1, count, "infinite")
    values[min(place, count - 1)] = math.nan
    with pytest.raises(UntaxError, match="NaN") as error:
        kth_largest(in_blocks(values), count, 100, where="outputs/sft: q_proj")
    assert "outputs/sft: q_proj" in str(error.value)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="0-th"):
        kth_largest(in_blocks(torch.ones(5)), 5, 0)
    with pytest.raises(ValueError, match="5 elements, not 6"):
        kth_largest(in_blocks(torch.ones(5)), 6, 1)
