"""Fisher merging against its formula in float64 and the product of Gaussians, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from untax.errors import UntaxError
from untax.merge.method import Job
from untax.merge.methods.fisher import fisher

from .statistic_deltas import InMemory, merged, save

NAME = "q_proj.weight"


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def files(folder: Path, values: list[torch.Tensor], name: str = NAME) -> tuple[str, ...]:
    return tuple(save(folder / f"{number}.safetensors", {name: value}) for number, value in enumerate(values))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 100),
    models=st.integers(1, 4),
    exponent=st.integers(-38, 20),
    weights=st.lists(st.floats(0.01, 10), min_size=4, max_size=4),
    scale=st.floats(-2, 2),
    shape=st.sampled_from([(7, 5), (7,)]),
)
def test_it_is_the_formula(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    models: int,
    exponent: int,
    weights: list[float],
    scale: float,
    shape: tuple[int, ...],
) -> None:
    """Of Fishers of any size that fp32 has, a third of them zero, for matrices and vectors."""
    deltas = [1e-3 * drawn(seed + model, *shape) for model in range(models)]
    values = [10.0**exponent * drawn(seed + 50 + model, *shape).clamp(min=0) ** 2 for model in range(models)]
    paths = files(tmp_path_factory.mktemp("fisher"), values)
    given_weights = tuple(weights[:models])
    found = merged(fisher, InMemory(NAME, tuple(deltas)), fisher=paths, weight=given_weights, **{"lambda": scale})
    precision = [weight * value.double() for weight, value in zip(given_weights, values, strict=True)]
    total = sum(precision)
    plain = sum(weight * delta.double() for weight, delta in zip(given_weights, deltas, strict=True)) / sum(
        given_weights
    )
    weighted = sum(one * delta.double() for one, delta in zip(precision, deltas, strict=True)) / total
    expected = scale * torch.where(total > 0, weighted, plain)
    torch.testing.assert_close(found, expected.float().reshape(found.shape), rtol=1e-6, atol=1e-12)


def test_two_gaussians(tmp_path: Path) -> None:
    """The likeliest point of the product of two densities, found by their values on a grid."""
    means, precisions = (0.3, -0.9), (4.0, 1.0)
    grid = torch.linspace(-2, 2, 400_001, dtype=torch.float64)
    density = sum(-precision / 2 * (grid - mean) ** 2 for mean, precision in zip(means, precisions, strict=True))
    paths = files(tmp_path, [torch.full((1, 1), precision) for precision in precisions])
    found = merged(fisher, InMemory(NAME, tuple(torch.full((1, 1), mean) for mean in means)), fisher=paths)
    assert found.item() == pytest.approx(grid[density.argmax()].item(), abs=1e-5)
    assert found.item() == pytest.approx(0.06)


def test_without_a_fisher_it_is_the_weighted_mean(tmp_path: Path) -> None:
    deltas = (drawn(1, 7, 5), drawn(2, 7, 5))
    zeros = files(tmp_path, [torch.zeros(7, 5)] * 2)
    found = merged(fisher, InMemory(NAME, deltas), fisher=zeros, weight=(3.0, 1.0))
    torch.testing.assert_close(found, 0.75 * deltas[0] + 0.25 * deltas[1])


def jobs(paths: tuple[str, ...], *names: str, **values: Any) -> list[Job]:
    deltas = (drawn(1, 7, 5), drawn(2, 7, 5))
    return [
        Job(InMemory(name, deltas), {"fisher": paths, "weight": (1.0, 1.0), "lambda": 1.0, **values}) for name in names
    ]


def check(*arguments: Any, **values: Any) -> None:
    assert fisher.check is not None
    fisher.check(jobs(*arguments, **values))


def test_a_tensor_that_no_file_has_gets_the_weighted_mean(tmp_path: Path) -> None:
    from untax.merge.method import Block

    paths = files(tmp_path, [torch.ones(7, 5)] * 2)
    check(paths, NAME, "norm.weight")
    stacked = torch.stack([drawn(1, 7, 5), drawn(2, 7, 5)])
    values = {"fisher": paths, "weight": (1.0, 3.0), "lambda": 2.0}
    found = fisher.merge(Block(stacked.clone(), "norm.weight", slice(0, 7), (7, 5), values))
    torch.testing.assert_close(found, 2 * (0.25 * stacked[0] + 0.75 * stacked[1]))
    with pytest.raises(UntaxError, match=r"None of the 1 tensors .* has a Fisher, norm.weight"):
        check(paths, "norm.weight")


def test_what_does_not_fit_is_refused_before_the_merge(tmp_path: Path) -> None:
    first, second = files(tmp_path / "a", [torch.ones(7, 5)] * 2)
    (other,) = files(tmp_path / "b", [torch.ones(7, 5)], "k_proj.weight")
    (turned,) = files(tmp_path / "c", [torch.ones(5, 7)])
    check((first, second), NAME)
    with pytest.raises(UntaxError, match=rf"nothing of {NAME} in this file, but in {first}") as error:
        check((first, other), NAME)
    assert error.value.where == other
    with pytest.raises(UntaxError, match=r"has the shape \[5, 7\], but the weight has 7 rows of 5") as error:
        check((first, turned), NAME)
    assert error.value.where == turned
    for weights in ((0.0, 0.0), (2.0, -1.0), (float("nan"), 1.0), (1.0, float("inf"))):
        with pytest.raises(UntaxError, match="no weights of a mean"):
            check((first, second), NAME, weight=weights)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_values_that_are_no_fisher_are_refused(tmp_path: Path, value: float) -> None:
    wrong = torch.ones(7, 5)
    wrong[6, 4] = value
    paths = files(tmp_path, [torch.ones(7, 5), wrong])
    with pytest.raises(UntaxError, match=f"Fisher of {NAME} holds NaN, infinity") as error:
        merged(fisher, InMemory(NAME, (drawn(1, 7, 5), drawn(2, 7, 5))), fisher=paths)
    assert error.value.where == paths[1]
