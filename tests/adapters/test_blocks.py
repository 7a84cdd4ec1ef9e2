"""Blocks of rows: all rows once, in order, none too large."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from untax.adapters import blocks


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rows=st.integers(0, 50), columns=st.integers(0, 20), elements=st.integers(1, 100), on_gpu=st.booleans())
def test_blocks_cover_all_rows_once(rows: int, columns: int, elements: int, on_gpu: bool) -> None:
    own, other = ("GPU_ELEMENTS", "CPU_ELEMENTS") if on_gpu else ("CPU_ELEMENTS", "GPU_ELEMENTS")
    with mock.patch.multiple(blocks, **{own: elements, other: -1}):
        found = list(blocks.row_blocks(rows, columns, on_gpu=on_gpu))
    assert [row for block in found for row in range(block.start, block.stop)] == list(range(rows))
    sizes = [block.stop - block.start for block in found]
    assert all(size == 1 or size * columns <= elements for size in sizes)
    assert all(size == max(1, elements // max(1, columns)) for size in sizes[:-1]), "none is smaller than need be"


def test_a_whole_layer_of_a_small_model_is_one_block() -> None:
    assert list(blocks.row_blocks(512, 512)) == [slice(0, 512)]
    assert len(list(blocks.row_blocks(14336, 4096))) == 224
    assert len(list(blocks.row_blocks(14336, 4096, on_gpu=True))) == 4


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    rank=st.integers(1, 6),
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    scale=st.floats(0.01, 64),
    elements=st.integers(1, 80),
    half=st.booleans(),
)
def test_products_are_those_of_whole_factors(
    seed: int, rank: int, rows: int, columns: int, scale: float, elements: int, half: bool
) -> None:
    drawn = torch.Generator().manual_seed(seed)
    dtype = torch.bfloat16 if half else torch.float32
    b = torch.randn(rows, rank, generator=drawn).to(dtype).requires_grad_()
    a = torch.randn(rank, columns, generator=drawn).to(dtype).requires_grad_()
    with mock.patch.object(blocks, "CPU_ELEMENTS", elements):
        found = list(blocks.product_blocks(b, a, scale))
    expected = scale * b.detach().double() @ a.detach().double()
    room = 1e-6 * scale * (b.detach().double().abs() @ a.detach().double().abs())
    for where, block in found:
        assert block.dtype == torch.float32
        assert not block.requires_grad
        assert ((block.double() - expected[where]).abs() <= room[where]).all()
    assert sum(block.shape[0] for _, block in found) == rows


def test_blocks_may_be_overwritten() -> None:
    """Each is new: neither the factors nor the other blocks see what is done to one."""
    b, a = torch.ones(4, 1), torch.ones(1, 3)
    with mock.patch.object(blocks, "CPU_ELEMENTS", 3):
        for _, block in blocks.product_blocks(b, a, 2.0):
            assert block.tolist() == [[2.0, 2.0, 2.0]]
            block.fill_(7)
    assert (b.sum(), a.sum()) == (4, 3)


@pytest.mark.parametrize(("rows", "columns"), [(0, 4), (4, 0)])
def test_nothing_has_no_elements(rows: int, columns: int) -> None:
    assert sum((block.stop - block.start) * columns for block in blocks.row_blocks(rows, columns)) == 0
