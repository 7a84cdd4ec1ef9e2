"""RegMean against least squares on the stacked data, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from untax.errors import UntaxError
from untax.merge.method import Job
from untax.merge.methods import regmean as module
from untax.merge.methods.regmean import regmean

from .statistic_deltas import InMemory, merged, save

NAME = "q_proj.weight"
OUT, IN = 7, 5


def features(seed: int, tokens: int, *, size: int = IN) -> torch.Tensor:
    """Inputs whose features are correlated, in another way for each seed."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(tokens, size, generator=generator, dtype=torch.float64) @ mixing


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grams(folder: Path, inputs: list[torch.Tensor], name: str = NAME, **notes: Any) -> tuple[str, ...]:
    metadata = {key: json.dumps(value) for key, value in notes.items()}
    return tuple(
        save(folder / f"{number}.safetensors", {name: (rows.T @ rows / len(rows)).float()}, **metadata)
        for number, rows in enumerate(inputs)
    )


def least_squares(inputs: list[torch.Tensor], weights: list[torch.Tensor]) -> np.ndarray:
    """W of (out, in) that minimises the sum over models of ||X W^T - X W_k^T||^2, by NumPy; each model counts alike."""
    stacked = np.concatenate([rows.numpy() / np.sqrt(len(rows)) for rows in inputs])
    wanted = np.concatenate(
        [(rows @ weight.double().T).numpy() / np.sqrt(len(rows)) for rows, weight in zip(inputs, weights, strict=True)]
    )
    found, *_ = np.linalg.lstsq(stacked, wanted, rcond=None)
    return found.T


@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("rows", [1024, 2])
def test_it_is_least_squares_on_all_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: int, rows: int
) -> None:
    """Two layers; the base's weight drops out."""
    monkeypatch.setattr(module, "ROWS", rows)
    base = 3 * drawn(99, OUT, IN).double()
    for layer in range(2):
        inputs = [features(10 * layer + model, 40 + 30 * model) for model in range(models)]
        deltas = [drawn(20 * layer + model, OUT, IN) for model in range(models)]
        paths = grams(tmp_path / str(layer), inputs)
        found = merged(regmean, InMemory(NAME, tuple(deltas)), gram=paths, shrink=1.0)
        expected = least_squares(inputs, [base + delta for delta in deltas]) - base.numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert not np.allclose(found, sum(deltas) / models, atol=0.1)


def test_weights_that_lie_the_other_way_round(tmp_path: Path) -> None:
    """Square, so that nothing but the file tells."""
    inputs, deltas = [features(1, 40), features(2, 50)], [drawn(1, IN, IN), drawn(2, IN, IN)]
    straight = merged(regmean, InMemory(NAME, tuple(deltas)), gram=grams(tmp_path / "a", inputs))
    paths = grams(tmp_path / "b", inputs, transposed=[NAME])
    turned = merged(regmean, InMemory(NAME, tuple(delta.T.contiguous() for delta in deltas)), gram=paths)
    torch.testing.assert_close(turned.T, straight, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(turned, straight, atol=0.1)


def test_shrink_scales_what_is_off_the_diagonal(tmp_path: Path) -> None:
    inputs, deltas = [features(1, 40), features(2, 50)], [drawn(1, OUT, IN), drawn(2, OUT, IN)]
    paths = grams(tmp_path, inputs)
    found = merged(regmean, InMemory(NAME, tuple(deltas)), gram=paths, shrink=0.0)
    weights = [(rows**2).mean(dim=0) for rows in inputs]
    expected = sum(delta * weight for delta, weight in zip(deltas, weights, strict=True)) / sum(weights)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)
    default, written = (
        merged(regmean, InMemory(NAME, tuple(deltas)), gram=paths, **more) for more in ({}, {"shrink": 0.9})
    )
    assert torch.equal(default, written)
    assert not torch.allclose(default, found, atol=1e-3)


@pytest.mark.parametrize("shrink", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("tokens", [60, 2])
def test_equal_deltas_give_themselves(tmp_path: Path, shrink: float, tokens: int) -> None:
    """With fewer tokens than features too, where no sum of Grams has an inverse."""
    delta = drawn(3, OUT, IN)
    paths = grams(tmp_path, [features(1, tokens), features(2, tokens)])
    found = merged(regmean, InMemory(NAME, (delta, delta)), gram=paths, shrink=shrink)
    torch.testing.assert_close(found, delta, rtol=1e-4, atol=1e-5)


def test_features_that_never_were_active_get_the_mean(tmp_path: Path) -> None:
    inputs, deltas = [features(1, 40), features(2, 50)], (drawn(1, OUT, IN), drawn(2, OUT, IN))
    for rows in inputs:
        rows[:, 2] = 0
    found = merged(regmean, InMemory(NAME, deltas), gram=grams(tmp_path, inputs), shrink=1.0)
    torch.testing.assert_close(found[:, 2], (deltas[0] + deltas[1])[:, 2] / 2, rtol=1e-4, atol=1e-5)
    others = [0, 1, 3, 4]
    expected = least_squares([rows[:, others] for rows in inputs], [delta[:, others] for delta in deltas])
    np.testing.assert_allclose(found[:, others], expected, rtol=1e-3, atol=1e-4)
    never = grams(tmp_path / "never", [rows * 0 for rows in inputs])
    torch.testing.assert_close(merged(regmean, InMemory(NAME, deltas), gram=never), (deltas[0] + deltas[1]) / 2)


def test_a_model_without_a_delta_pulls_towards_the_base(tmp_path: Path) -> None:
    inputs, delta = [features(1, 40), features(2, 50)], drawn(1, OUT, IN)
    paths = grams(tmp_path, inputs)
    found = merged(regmean, InMemory(NAME, (delta, None)), gram=paths)
    torch.testing.assert_close(found, merged(regmean, InMemory(NAME, (delta, delta * 0)), gram=paths))
    assert 0 < found.norm() < delta.norm()


def jobs(paths: tuple[str, ...], *names: str, shrink: float = 0.9) -> list[Job]:
    deltas = (drawn(1, OUT, IN), drawn(2, OUT, IN))
    return [Job(InMemory(name, deltas), {"gram": paths, "shrink": shrink}) for name in names]


def test_tensors_without_a_gram_get_the_plain_mean(tmp_path: Path) -> None:
    paths = grams(tmp_path, [features(1, 40), features(2, 50)])
    norm = InMemory("norm.weight", (drawn(1, OUT), drawn(2, OUT)))
    (job,) = jobs(paths, "norm.weight")
    assert regmean.statistics is not None
    assert regmean.statistics(job) is None
    regmean.check(jobs(paths, NAME, "norm.weight"))  # type: ignore[misc]
    with pytest.raises(UntaxError, match=r"None of the 1 tensors .* has a Gram, norm.weight"):
        merged(regmean, norm, gram=paths)


def test_what_does_not_fit_is_refused_before_the_merge(tmp_path: Path) -> None:
    first, second = grams(tmp_path / "a", [features(1, 40), features(2, 50)])
    (other,) = grams(tmp_path / "b", [features(1, 40)], "k_proj.weight")
    (wide,) = grams(tmp_path / "c", [features(1, 40, size=IN + 1)])

    def check(*arguments: Any, **options: Any) -> None:
        assert regmean.check is not None
        regmean.check(jobs(*arguments, **options))

    check((first, second), NAME)
    with pytest.raises(UntaxError, match=rf"nothing of {NAME} in this file, but in {first}") as error:
        check((first, other), NAME)
    assert error.value.where == other
    with pytest.raises(UntaxError, match=r"is 6 x 6, but the layer reads 5 features") as error:
        check((first, wide), NAME)
    assert error.value.where == wide
    with pytest.raises(UntaxError, match="cannot be read"):
        check((first, str(tmp_path / "none.safetensors")), NAME)
    with pytest.raises(UntaxError, match=r"cannot be multiplied by 1\.5"):
        check((first, second), NAME, shrink=1.5)


def test_nan_in_a_gram_is_refused(tmp_path: Path) -> None:
    inputs = [features(1, 40), features(2, 50)]
    inputs[1][3, 3] = float("nan")
    with pytest.raises(UntaxError, match="NaN"):
        merged(regmean, InMemory(NAME, (drawn(1, OUT, IN), drawn(2, OUT, IN))), gram=grams(tmp_path, inputs))


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    deltas = InMemory(NAME, (drawn(1, OUT, IN), drawn(2, OUT, IN)))
    before = merged(regmean, deltas, gram=grams(tmp_path, [features(1, 40), features(2, 50)]))
    after = merged(regmean, deltas, gram=grams(tmp_path, [features(5, 40), features(6, 50)]))
    assert not torch.allclose(before, after, atol=0.01)
