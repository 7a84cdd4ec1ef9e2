"""Exact zeros in a LoRA delta: whole rows of B and columns of A are pruned while the training goes on.

A soft threshold on B @ A would leave the set of low-rank matrices. A zero row of B is a zero row of the delta, and a
zero column of A a zero column of it. They go gradually, the smallest norms in the delta first, over all layers at once,
until the target share of zeros is reached; the second half of the training is spent on what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from untax.adapters.delta import LowRankDelta
from untax.adapters.sharding import own_rows, whole
from untax.penalty.select import Groups, density, remove

if TYPE_CHECKING:
    import torch

# Shares of the steps between which groups go, and in how many goes (docs/sparse-sft.md has the measurements).
START, END, EVENTS = 0.1, 0.5, 12


class Pruner:
    """What is pruned follows from the weights, the step and the target alone, so a resumed training goes on as before.

    Attributes:
        target: share of zeros, averaged over the layers, to be reached at ``END``.
    """

    def __init__(self, target: float):
        self.target = target
        self._groups: list[Groups] = []

    def mask_gradients(self, deltas: Sequence[LowRankDelta]) -> None:
        """Take pruned rows and columns out of the gradients, so that clipping does not count them."""
        for delta, groups in zip(deltas, self._of(deltas), strict=True):
            _clear(delta.b.grad, delta.a.grad, groups)

    def prune(self, deltas: Sequence[LowRankDelta], *, step: int, steps: int) -> None:
        """What comes after the optimizer's step: momentum must not revive what is pruned, and more may be due.

        Args:
            deltas: the same layers every time.
            step: number of optimizer steps before this one.
            steps: how many there will be.
        """
        groups = self._of(deltas)
        wanted = due(self.target, step=step, steps=steps)
        if wanted > 1 - density(groups):
            scores = [_norms(delta) for delta in deltas]
            self._groups = groups = remove(groups, scores, 1 - wanted)
        for delta, own in zip(deltas, groups, strict=True):
            _clear(delta.b, delta.a, own)

    def _of(self, deltas: Sequence[LowRankDelta]) -> list[Groups]:
        if not self._groups:
            self._groups = [_alive(delta) for delta in deltas]
        return self._groups


def prune_after_steps(trainer: Any, pruner: Pruner, deltas: Callable[[], Sequence[LowRankDelta]]) -> None:
    """Have ``pruner`` called after every optimizer step of a trainer."""
    from transformers import TrainerCallback

    class PruneAfterSteps(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """The step has been taken, and is not counted yet."""
            pruner.prune(deltas(), step=state.global_step, steps=state.max_steps)

    trainer.add_callback(PruneAfterSteps())


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


def _alive(delta: LowRankDelta) -> Groups:
    """Read off the weights. Before the first step B is zero as a whole, and nothing is pruned."""
    rows, columns = (whole(delta.b) != 0).any(dim=1).cpu(), (whole(delta.a) != 0).any(dim=0).cpu()
    if not rows.any() and columns.any():
        rows = ~rows
    return Groups(rows, columns)


def _norms(delta: LowRankDelta) -> Groups:
    """Squared norms of the delta's rows and columns, in float64 by r x r matrices: s^2 * b (A A^T) b^T and so on."""
    b, a = whole(delta.b).double().cpu(), whole(delta.a).double().cpu()
    rows, columns = ((b @ (a @ a.T)) * b).sum(dim=1), (((b.T @ b) @ a) * a).sum(dim=0)
    return Groups(rows * delta.scale**2, columns * delta.scale**2)


def _clear(b: Any, a: Any, groups: Groups) -> None:
    for tensor, alive, by_rows in ((b, groups.rows, True), (a, groups.columns, False)):
        if tensor is None or bool(alive.all()):
            continue
        own, first = own_rows(tensor)
        gone: torch.Tensor = ~alive.to(own.device)
        own.masked_fill_(gone[first : first + own.shape[0], None] if by_rows else gone, 0)
