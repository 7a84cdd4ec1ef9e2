"""Truncation through the small factors against the dense singular value decomposition."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_adapters import write_adapter
from untax.adapters.stored import StoredAdapter
from untax.merge.recompress import Combined, CombinedLayer, Share, combine, product_norm, truncate

SIZES = st.integers(1, 9)


def random_factors(out: int, rank: int, columns: int, seed: int) -> tuple[Any, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, rank, generator=generator), torch.randn(rank, columns, generator=generator)


def dense(up: Any, down: Any) -> np.ndarray:
    return up.double().numpy() @ down.double().numpy()


@given(SIZES, st.integers(1, 12), SIZES, st.integers(0, 99), st.data())
def test_the_best_of_its_rank(out: int, full: int, columns: int, seed: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(full, out, columns)))
    up, down = random_factors(out, full, columns, seed)
    (new_up, new_down), norm, lost = truncate(up, down, rank)
    left, sizes, right = np.linalg.svd(dense(up, down), full_matrices=False)
    best = (left[:, :rank] * sizes[:rank]) @ right[:rank]
    found = dense(new_up, new_down)
    tail = math.sqrt(float((sizes[rank:] ** 2).sum()))
    assert new_up.shape == (out, rank)
    assert new_down.shape == (rank, columns)
    assert norm == pytest.approx(float(np.linalg.norm(sizes)), rel=1e-9)
    assert lost == pytest.approx(tail, rel=1e-6, abs=1e-9 * norm)
    # Where two singular values are nearly equal there are many best approximations, all at the same distance.
    assert np.linalg.norm(found - dense(up, down)) == pytest.approx(tail, abs=1e-6 * norm)
    if rank == len(sizes) or sizes[rank - 1] - sizes[rank] > 1e-3 * sizes[0]:
        assert np.linalg.norm(found - best) < 1e-5 * norm


def test_both_factors_carry_the_roots_and_signs_are_fixed() -> None:
    up, down = random_factors(7, 5, 6, seed=0)
    (new_up, new_down), _, _ = truncate(up, down, 3)
    assert np.allclose(new_up.norm(dim=0), new_down.norm(dim=1), rtol=1e-6)
    largest = new_up.abs().argmax(dim=0)
    assert all(float(new_up[row, column]) > 0 for column, row in enumerate(largest))
    (other_up, other_down), _, _ = truncate(-up, -down, 3)
    assert np.allclose(other_up, new_up, atol=1e-6)
    assert np.allclose(other_down, new_down, atol=1e-6)


def test_a_delta_of_zero() -> None:
    up, down = random_factors(6, 4, 5, seed=1)
    (new_up, new_down), norm, lost = truncate(up, 0 * down, 2)
    assert float(new_up.abs().max()) == float(new_down.abs().max()) == norm == lost == 0.0
    assert CombinedLayer("m", 4, 2, 22, norm, lost).error == 0.0
    assert Combined((CombinedLayer("m", 4, 2, 22, norm, lost),)).error == 0.0


def test_the_norm_of_a_product() -> None:
    up, down = random_factors(8, 3, 7, seed=2)
    assert product_norm(up, down) == pytest.approx(np.linalg.norm(dense(up, down)), rel=1e-12)


def test_errors_of_layers_add_up_as_norms() -> None:
    layers = (CombinedLayer("a", 4, 2, 10, norm=3.0, lost=0.3), CombinedLayer("b", 2, 2, 20, norm=4.0, lost=0.0))
    found = Combined(layers)
    assert [layer.error for layer in layers] == pytest.approx([0.1, 0.0])
    assert found.error == pytest.approx(0.3 / 5.0)
    assert (found.rank, found.elements) == (2, 30)


def shares(folder: Path, factors: list[tuple[Any, Any, float]]) -> list[Share]:
    made = []
    for number, (up, down, coefficient) in enumerate(factors):
        rank = down.shape[0]
        place = write_adapter(folder / str(number), {"m": (up, down)}, r=rank, lora_alpha=3 * rank)
        adapter = StoredAdapter(place)
        made.append(Share(adapter, coefficient, adapter.layers[0]))
    return made


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(-8, 8).map(lambda quarters: quarters / 4)), min_size=1, max_size=4
    ),
    st.data(),
)
def test_the_order_of_adapters_does_not_matter(parts: list[tuple[int, float]], data: st.DataObject) -> None:
    factors = [(*random_factors(6, rank, 5, seed), c) for seed, (rank, c) in enumerate(parts)]
    order = data.draw(st.permutations(range(len(factors))))
    rank = data.draw(st.sampled_from([None, 1, 2, 5]))
    wanted = sum(3 * c * dense(up, down) for up, down, c in factors)
    with tempfile.TemporaryDirectory() as name:
        made = shares(Path(name), factors)
        layer, one = combine("m", made, rank)
        again, other = combine("m", [made[place] for place in order], rank)
    size = sum(abs(3 * c) * np.linalg.norm(dense(up, down)) for up, down, c in factors)
    assert layer.error == pytest.approx(again.error, rel=1e-4, abs=1e-6)
    assert np.linalg.norm(dense(*one) - wanted) <= layer.lost + 1e-6 * size
    assert np.linalg.norm(dense(*other) - wanted) <= layer.lost + 1e-6 * size
    if rank is None or layer.full_rank <= rank:
        assert np.linalg.norm(dense(*one) - dense(*other)) <= 1e-6 * size


def test_a_rank_that_suffices_changes_no_bit(tmp_path: Path) -> None:
    made = shares(tmp_path, [(*random_factors(6, 2, 5, seed=3), 0.5), (*random_factors(6, 1, 5, seed=4), -1.0)])
    exact, (up, down) = combine("m", made, None)
    kept, (same_up, same_down) = combine("m", made, 3)
    assert bool((up == same_up).all())
    assert bool((down == same_down).all())
    assert (exact.norm, exact.error, kept.error, kept.rank) == (None, 0.0, 0.0, 3)
    assert kept.norm == pytest.approx(np.linalg.norm(dense(up, down)))


def test_a_rank_beyond_the_matrix_is_the_matrix(tmp_path: Path) -> None:
    made = shares(tmp_path, [(*random_factors(3, 4, 5, seed=5), 1.0), (*random_factors(3, 4, 5, seed=6), 1.0)])
    layer, factors = combine("m", made, 6)
    _, exact = combine("m", made, None)
    assert (layer.full_rank, layer.rank) == (8, 3)
    assert layer.error < 1e-12
    assert np.allclose(dense(*factors), dense(*exact), atol=1e-5)
