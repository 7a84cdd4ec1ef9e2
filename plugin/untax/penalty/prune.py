"""Exact zeros in a LoRA delta: whole rows of B and columns of A are pruned while the training goes on.

A soft threshold on B @ A would leave the set of low-rank matrices. A zero row of B is a zero row of the delta, and a
zero column of A a zero column of it. They go gradually, the smallest norms in the delta first, over all layers at once,
until the target share of zeros is reached; the second half of the training is spent on what is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from untax.adapters.delta import LowRankDelta
from untax.adapters.sharding import own_rows, whole
from untax.penalty.select import Groups, density, remove

if TYPE_CHECKING:
    import torch

# Shares of the steps between which groups go, and in how many goes (docs/sparse-sft.md has the measurements).
START, END, EVENTS = 0.1, 0.5, 12


class Pruner:
    """Prunes one model's layers, always given in the same order.

    Attributes:
        target: share of zeros, averaged over the layers, to be reached at ``END``.
    """

    def __init__(self, target: float):
        self.target = target
        self._alive: list[Groups] = []
        # What is gone, where the factors are: (rows, columns), or None for a layer that has lost nothing.
        self._gone: list[tuple[torch.Tensor, torch.Tensor] | None] = []

    def mask_gradients(self, deltas: Sequence[LowRankDelta]) -> None:
        """Take pruned rows and columns out of the gradients, so that clipping does not count them."""
        for delta, gone in zip(deltas, self._gone, strict=False):
            _clear(delta.b.grad, delta.a.grad, gone)

    def prune(self, deltas: Sequence[LowRankDelta], *, step: int, steps: int) -> None:
        """What comes after the optimizer's step: momentum must not revive what is pruned, and more may be due.

        Args:
            deltas: the layers.
            step: number of optimizer steps before this one.
            steps: how many there will be.
        """
        alive = self._alive or [_all_alive(delta) for delta in deltas]
        wanted = due(self.target, step=step, steps=steps)
        if wanted > 1 - density(alive):
            self._set(_agreed(remove(alive, [_norms(delta) for delta in deltas], 1 - wanted)), deltas)
        for delta, gone in zip(deltas, self._gone, strict=False):
            _clear(delta.b, delta.a, gone)

    def masks(self, deltas: Sequence[LowRankDelta]) -> dict[str, torch.Tensor]:
        """Which rows and columns are left, for a checkpoint: nothing before the first are gone."""
        named = zip(deltas, self._alive, strict=False)
        return {
            f"{delta.name}.{part}": mask
            for delta, own in named
            for part, mask in (("rows", own.rows), ("columns", own.columns))
        }

    def restore(self, masks: Mapping[str, torch.Tensor], deltas: Sequence[LowRankDelta]) -> None:
        """Go on from the ``masks`` of a checkpoint."""
        if masks:
            self._set([Groups(masks[f"{d.name}.rows"], masks[f"{d.name}.columns"]) for d in deltas], deltas)

    def _set(self, alive: list[Groups], deltas: Sequence[LowRankDelta]) -> None:
        self._alive = alive
        self._gone = [
            None
            if bool(own.rows.all()) and bool(own.columns.all())
            else (~own.rows.to(delta.b.device), ~own.columns.to(delta.a.device))
            for delta, own in zip(deltas, alive, strict=True)
        ]


def due(target: float, *, step: int, steps: int) -> float:
    """The share of zeros that is due after a step: 0 until START, the target from END on, a cubic curve between.

    It rises in EVENTS equal parts of the time, for choosing groups is the costly part.

    >>> [round(due(0.9, step=step, steps=100), 3) for step in (0, 10, 30, 49, 50, 99)]
    [0.0, 0.189, 0.811, 0.899, 0.9, 0.9]
    """
    first, last = START * steps, END * steps
    if step < first:
        return 0.0
    part = 1.0 if step >= last else (int((step - first) / max(last - first, 1e-9) * EVENTS) + 1) / (EVENTS + 1)
    return target * (1 - (1 - part) ** 3)


def _all_alive(delta: LowRankDelta) -> Groups:
    import torch

    rows, columns = delta.shape
    return Groups(torch.ones(rows, dtype=torch.bool), torch.ones(columns, dtype=torch.bool))


def _agreed(alive: list[Groups]) -> list[Groups]:
    """Those of the first rank: a difference in the last bit must not prune different rows on different ranks."""
    import torch.distributed as ranks

    if ranks.is_available() and ranks.is_initialized():
        shared = [alive]
        ranks.broadcast_object_list(shared, src=0)
        return shared[0]
    return alive


def _norms(delta: LowRankDelta) -> Groups:
    """Squared norms of the delta's rows and columns, in float64 by r x r matrices: s^2 * b (A A^T) b^T and so on."""
    b, a = whole(delta.b).double().cpu(), whole(delta.a).double().cpu()
    rows, columns = ((b @ (a @ a.T)) * b).sum(dim=1), (((b.T @ b) @ a) * a).sum(dim=0)
    return Groups(rows * delta.scale**2, columns * delta.scale**2)


def _clear(b: Any, a: Any, gone: tuple[torch.Tensor, torch.Tensor] | None) -> None:
    if gone is None:
        return
    for tensor, own_gone, by_rows in ((b, gone[0], True), (a, gone[1], False)):
        if tensor is not None:
            own, first = own_rows(tensor)
            own.masked_fill_(own_gone[first : first + own.shape[0], None] if by_rows else own_gone, 0)
