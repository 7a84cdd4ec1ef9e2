"""What a penalty holds at once beyond the model: blocks of one layer, where autograd keeps the deltas of all."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from untax.adapters.blocks import CPU_ELEMENTS
from untax.adapters.delta import LowRankDelta
from untax.adapters.norms import delta_norms
from untax.penalty.l1 import add_l1

RANK = 8
ROWS, COLUMNS = 2048, 1024
DELTA = 4 * ROWS * COLUMNS
FACTORS = 4 * RANK * (ROWS + COLUMNS)
BLOCK = 4 * CPU_ELEMENTS


class Peak(TorchDispatchMode):
    """Bytes of the tensors that operations made and that are still referred to, and the most there ever were."""

    def __init__(self, *known: torch.Tensor) -> None:
        super().__init__()
        self.live = self.most = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.most = max(self.most, self.live)

        def gone() -> None:
            self._known.discard(key)
            self.live -= size

        weakref.finalize(storage, gone)


def layers(count: int, dtype: torch.dtype = torch.float32) -> list[LowRankDelta]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(count):
        a = torch.randn(RANK, COLUMNS, generator=generator).to(dtype).requires_grad_()
        b = torch.randn(ROWS, RANK, generator=generator).to(dtype).requires_grad_()
        a.grad, b.grad = torch.zeros_like(a), torch.zeros_like(b)
        made.append(LowRankDelta(f"layer {index}", a, b, 0.5))
    return made


def most_bytes(deltas: list[LowRankDelta], work: Callable[[], Any]) -> int:
    known = [part for delta in deltas for factor in (delta.a, delta.b) for part in (factor, factor.grad)]
    with Peak(*known) as peak:
        work()
    return peak.most


@pytest.mark.parametrize("count", [1, 3])
def test_the_penalty_holds_one_block_and_factors(count: int) -> None:
    deltas = layers(count)
    most = most_bytes(deltas, lambda: [add_l1(delta, weight=0.1) for delta in deltas])
    assert BLOCK <= most <= BLOCK + 2 * FACTORS
    assert most < DELTA / 5, "the goal is two whole deltas"
    assert all(delta.a.grad.any() and delta.b.grad.any() for delta in deltas)


def test_half_precision_adds_no_more_than_copies_of_the_factors() -> None:
    deltas = layers(1, torch.bfloat16)
    most = most_bytes(deltas, lambda: add_l1(deltas[0], weight=0.1))
    assert BLOCK <= most <= BLOCK + 4 * FACTORS < DELTA


def test_norms_hold_few_blocks() -> None:
    deltas = layers(3)
    assert BLOCK <= most_bytes(deltas, lambda: delta_norms(deltas)) <= 3 * BLOCK + 2 * FACTORS < DELTA


def test_autograd_keeps_every_layer() -> None:
    """The same measure sees what naive autograd holds, and that it grows with the layers."""

    def naive(deltas: list[LowRankDelta]) -> None:
        total = torch.stack([(delta.scale * (delta.b @ delta.a)).abs().sum() for delta in deltas]).sum()
        total.backward()

    one, three = (most_bytes(deltas, lambda deltas=deltas: naive(deltas)) for deltas in (layers(1), layers(3)))
    assert one >= 2 * DELTA
    assert three >= one + 2 * DELTA
