"""Ways of making a LoRA delta sparse while it is trained, on the matrix of factors that toy_llama.py describes.

A step is: backward, ``add_gradient``, clipping to norm 1, ``mask_gradient``, Adam, ``after_step``. Settings that are
shares (``start``, ``end``, ``until``) are shares of the steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from toy_llama import Layout

ROUNDS = 12


@dataclass(frozen=True)
class Step:
    """What a way may know of the optimizer's step.

    Attributes:
        index: steps before this one.
        lr: of this step.
        squares: Adam's running mean of squared gradients, not corrected for its bias; shape of the factors.
        denominator: Adam's, corrected.
    """

    index: int
    lr: float
    squares: Tensor
    denominator: Tensor


class Dense:
    """Nothing is made sparse. The other ways say where they differ."""

    def __init__(self, layout: Layout, steps: int):
        self.layout, self.steps = layout, steps
        self.support: Tensor | None = None
        """Groups that are left, shape (groups, 1), once that is settled."""

    def add_gradient(self, factors: Tensor, gradient: Tensor) -> None:
        """Add the penalty's subgradient to the gradient of the loss."""

    def mask_gradient(self, gradient: Tensor) -> Tensor:
        """Without what cannot move any more, after clipping: its momentum must not build up."""
        return gradient if self.support is None else gradient * self.support

    def after_step(self, factors: Tensor, step: Step) -> None:
        """Shrink or clear what the optimizer has moved."""


class ProductSubgradient(Dense):
    """strength * ||B @ A||_1 in the loss: the penalty of PAFT."""

    def __init__(self, layout: Layout, steps: int, *, strength: float):
        super().__init__(layout, steps)
        self.strength = strength

    def add_gradient(self, factors: Tensor, gradient: Tensor) -> None:
        rows, columns = self.layout.split(factors)
        signs = [(b @ a.T).sign() for b, a in zip(rows, columns, strict=True)]
        of_b = [sign @ a for sign, a in zip(signs, columns, strict=True)]
        of_a = [sign.T @ b for sign, b in zip(signs, rows, strict=True)]
        gradient.add_(torch.cat(of_b + of_a), alpha=self.strength)


class FactorSubgradient(Dense):
    """strength * (||A||_1 + ||B||_1) in the loss."""

    def __init__(self, layout: Layout, steps: int, *, strength: float):
        super().__init__(layout, steps)
        self.strength = strength

    def add_gradient(self, factors: Tensor, gradient: Tensor) -> None:
        gradient.add_(factors.sign(), alpha=self.strength)


class Frozen(Dense):
    """Shrinks until a share of the steps is over; from then on what is zero stays zero and nothing more is shrunk."""

    def __init__(self, layout: Layout, steps: int, *, strength: float, until: float):
        super().__init__(layout, steps)
        self.strength, self.until = strength, until * steps

    def after_step(self, factors: Tensor, step: Step) -> None:
        if step.index < self.until:
            self.shrink(factors, step)
            return
        if self.support is None:
            self.support = (factors != 0).float()
        factors.mul_(self.support)

    def shrink(self, factors: Tensor, step: Step) -> None:
        raise NotImplementedError


class Proximal(Frozen):
    """Soft threshold lr * strength after the step, on elements of the factors or on norms of groups.

    With ``adaptive`` small groups are shrunk more: their threshold is multiplied by (0.1 / norm) ** adaptive.
    """

    def __init__(self, layout: Layout, steps: int, *, on: str, strength: float, adaptive: float, until: float):
        super().__init__(layout, steps, strength=strength, until=until)
        if on not in ("elements", "rows", "rows and columns"):
            raise ValueError(on)
        self.on, self.adaptive = on, adaptive

    def shrink(self, factors: Tensor, step: Step) -> None:
        threshold = step.lr * self.strength
        if self.on == "elements":
            factors.copy_(factors.sign() * (factors.abs() - threshold).clamp_min(0))
            return
        norms = factors.norm(dim=1, keepdim=True)
        thresholds = torch.full_like(norms, threshold)
        if self.on == "rows":
            thresholds[self.layout.rows :] = 0
        if self.adaptive:
            thresholds = thresholds * (0.1 / norms.clamp_min(1e-12)) ** self.adaptive
        _shrink_groups(factors, norms, thresholds)


class ProximalInAdamsMetric(Frozen):
    """Soft threshold on groups, divided by the group's root mean square of Adam's denominator.

    ``strength`` is then in units of the gradient, as it is for a subgradient.
    """

    def shrink(self, factors: Tensor, step: Step) -> None:
        scales = step.denominator.pow(2).mean(1, keepdim=True).sqrt()
        _shrink_groups(factors, factors.norm(dim=1, keepdim=True), step.lr * self.strength / scales)


def _shrink_groups(factors: Tensor, norms: Tensor, thresholds: Tensor) -> None:
    factors.mul_((1 - thresholds / norms.clamp_min(1e-12)).clamp_min(0))


class FixedSupport(Dense):
    """The groups that are left are given before the first step."""

    def __init__(self, layout: Layout, steps: int, *, left: Tensor):
        super().__init__(layout, steps)
        self.support = left[:, None]

    def after_step(self, factors: Tensor, step: Step) -> None:
        factors.mul_(self.support)


class Gradual(Dense):
    """Groups go between ``start`` and ``end``; the share of zeros rises to ``target`` on a cubic curve."""

    def __init__(self, layout: Layout, steps: int, *, target: float, start: float, end: float):
        super().__init__(layout, steps)
        self.target, self.start, self.end = target, start * steps, end * steps

    def progress(self, step: Step) -> tuple[float, float]:
        """How much of the time between start and end is over, and the share of zeros that is due."""
        over = min(1.0, (step.index - self.start) / (self.end - self.start))
        return over, self.target * (1 - (1 - over) ** 3)


class PerLayer(Gradual):
    """Each layer keeps the rows and the columns of its delta with the largest norms, the same share of both."""

    def after_step(self, factors: Tensor, step: Step) -> None:
        if step.index < self.start:
            return
        if self.support is not None:
            factors.mul_(self.support)
            return
        over, due = self.progress(step)
        left = largest_per_layer(self.layout, factors, math.sqrt(1 - due), fill=1 - self.target if over >= 1 else None)
        factors.mul_(left[:, None])
        if over >= 1:
            self.support = left[:, None]


class Global(Gradual):
    """Groups of all layers compete; every ten steps those go that are worth least for the zeros that they give.

    ``score``: "delta norm": squared norm of the delta's row or column; "saliency": sum of squared factors times
    Adam's squares, as in optimal brain damage; "saliency, root": times Adam's denominator.
    """

    def __init__(self, layout: Layout, steps: int, *, score: str, target: float, start: float, end: float):
        super().__init__(layout, steps, target=target, start=start, end=end)
        self.score = score
        self.left = torch.ones(layout.groups)

    def after_step(self, factors: Tensor, step: Step) -> None:
        if step.index < self.start:
            return
        settled = self.support is not None
        if not settled and (int(step.index - self.start) % 10 == 0 or step.index >= self.end):
            over, due = self.progress(step)
            if due > 1 - self.layout.density(self.left):
                self.left = least_worth_removed(self.layout, self._scores(factors, step), self.left, 1 - due)
            if over >= 1:
                self.support = self.left[:, None]
        factors.mul_(self.left[:, None])

    def _scores(self, factors: Tensor, step: Step) -> Tensor:
        if self.score == "delta norm":
            return delta_norms(self.layout, factors) ** 2
        if self.score == "saliency":
            return (factors * factors * step.squares).sum(1)
        if self.score == "saliency, root":
            return (factors * factors * step.denominator).sum(1)
        raise ValueError(self.score)


def delta_norms(layout: Layout, factors: Tensor) -> Tensor:
    """Norms of the rows and columns of the deltas, shape (groups,), by matrices of shape (rank, rank)."""
    pairs = list(zip(*layout.split(factors), strict=True))
    rows = [((b @ (a.T @ a)) * b).sum(1) for b, a in pairs]
    columns = [((a @ (b.T @ b)) * a).sum(1) for b, a in pairs]
    return torch.cat(rows + columns).clamp_min(0).sqrt()


def largest_per_layer(layout: Layout, factors: Tensor, share: float, fill: float | None = None) -> Tensor:
    """The groups with the largest norms in each layer's delta, 1 or 0.

    Args:
        layout: of the factors.
        factors: shape (groups, rank).
        share: of the rows and of the columns that are kept, rounded down.
        fill: as many rows more as this density allows, for what rounding has left.
    """
    kept: tuple[list[Tensor], list[Tensor]] = ([], [])
    for rows, columns in zip(*layout.split(delta_norms(layout, factors)), strict=True):
        counts = [max(1, int(share * len(norms))) for norms in (rows, columns)]
        while fill is not None and (counts[0] + 1) * counts[1] <= fill * len(rows) * len(columns):
            counts[0] += 1
        for norms, count, own in zip((rows, columns), counts, kept, strict=True):
            own.append((norms >= norms.topk(count).values[-1]).float())
    return torch.cat(kept[0] + kept[1])


def least_worth_removed(layout: Layout, scores: Tensor, left: Tensor, density: float) -> Tensor:
    """Remove the groups with the least score per element that they hold until at most ``density`` is left.

    What a row holds depends on how many columns are left, so it is weighed anew in each of twelve rounds.
    """
    left = left.clone()
    first = layout.density(left)
    for part in range(1, ROUNDS + 1):
        wanted = first + (density - first) * part / ROUNDS
        worth = torch.where(left > 0, scores / _held(layout, left).clamp_min(1e-12), torch.full_like(scores, -1.0))
        order = worth.argsort()
        low, high = int((worth < 0).sum()), layout.groups
        while high - low > 1:
            middle = (low + high) // 2
            after = left.clone()
            after[order[:middle]] = 0
            low, high = (middle, high) if layout.density(after) > wanted else (low, middle)
        if layout.density(left) > wanted:
            left[order[:high]] = 0
    return left


def _held(layout: Layout, left: Tensor) -> Tensor:
    """The share of its layer's elements that each group holds."""
    pairs = list(zip(*layout.split(left), strict=True))
    of_rows = [(columns.sum() / (len(rows) * len(columns))).expand(len(rows)) for rows, columns in pairs]
    of_columns = [(rows.sum() / (len(rows) * len(columns))).expand(len(columns)) for rows, columns in pairs]
    return torch.cat(of_rows + of_columns)


WAYS: dict[str, Any] = {
    "dense": Dense,
    "subgradient on the product": ProductSubgradient,
    "subgradient on the factors": FactorSubgradient,
    "proximal": Proximal,
    "proximal in Adam's metric": ProximalInAdamsMetric,
    "fixed support": FixedSupport,
    "pruned per layer": PerLayer,
    "pruned globally": Global,
}
