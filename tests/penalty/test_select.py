"""Which rows and columns go: the density that was asked for, by the groups worth least."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from untax.penalty.select import Groups, density, remove


def alive(*shapes: tuple[int, int]) -> list[Groups]:
    return [
        Groups(torch.ones(rows, dtype=torch.bool), torch.ones(columns, dtype=torch.bool)) for rows, columns in shapes
    ]


def scores(seed: int, shapes: list[tuple[int, int]]) -> list[Groups]:
    generator = torch.Generator().manual_seed(seed)
    return [Groups(torch.rand(r, generator=generator), torch.rand(c, generator=generator)) for r, c in shapes]


def subset(less: list[Groups], more: list[Groups]) -> bool:
    return all(
        not (a.rows & ~b.rows).any() and not (a.columns & ~b.columns).any() for a, b in zip(less, more, strict=True)
    )


SHAPES = st.lists(st.tuples(st.integers(1, 24), st.integers(1, 24)), min_size=1, max_size=5)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(shapes=SHAPES, seed=st.integers(0, 2**31), first=st.floats(0.0, 1.0), second=st.floats(0.0, 1.0))
def test_what_is_left_is_at_most_what_was_asked_for(
    shapes: list[tuple[int, int]], seed: int, first: float, second: float
) -> None:
    worth, begun = scores(seed, shapes), alive(*shapes)
    once = remove(begun, worth, first)
    assert density(once) <= first + 1e-12
    again = remove(once, worth, min(first, second))
    assert density(again) <= min(first, second) + 1e-12
    assert subset(again, once), "what is gone stays gone"
    assert all(own.rows.any() == own.columns.any() for own in again)
    assert subset(remove(begun, worth, 1.0), begun)
    assert density(remove(begun, worth, 1.0)) == 1.0


def test_those_worth_least_go_first() -> None:
    worth = [Groups(torch.tensor([4.0, 1.0, 3.0, 9.0]), torch.tensor([8.0, 2.0, 7.0, 6.0]))]
    left = remove(alive((4, 4)), worth, 0.75)[0]
    assert left.rows.tolist() == [True, False, True, True]
    assert left.columns.all()
    half = remove(alive((4, 4)), worth, 9 / 16)[0]
    assert (half.rows.sum() * half.columns.sum()).item() == 9
    assert half.rows.tolist() == [True, False, True, True]
    assert half.columns.tolist() == [True, False, True, True]


def test_a_layer_that_matters_less_gives_more() -> None:
    worth = [Groups(torch.full((8,), 0.01), torch.full((8,), 0.01)), Groups(torch.ones(8), torch.ones(8))]
    small, large = remove(alive((8, 8), (8, 8)), worth, 0.5)
    assert density([small]) == 0.0
    assert density([large]) == 1.0


def test_layers_count_alike_whatever_their_size() -> None:
    left = remove(alive((64, 64), (2, 2)), scores(0, [(64, 64), (2, 2)]), 0.3)
    shares = [density([own]) for own in left]
    assert sum(shares) / 2 == density(left) <= 0.3
