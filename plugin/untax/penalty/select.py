"""Which rows and columns of the deltas are pruned next: those that matter least for the zeros they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# What a row costs depends on how many columns are left, and the other way round: it is weighed anew this many times.
ROUNDS = 8


@dataclass(frozen=True)
class Groups:
    """Something about every row and every column of one layer's delta.

    Attributes:
        rows: shape (out,).
        columns: shape (in,).
    """

    rows: torch.Tensor
    columns: torch.Tensor


def density(alive: Sequence[Groups]) -> float:
    """Share of elements whose row and column are alive, averaged over the layers as in PAFT's figure 2."""
    shares = [own.rows.double().mean().item() * own.columns.double().mean().item() for own in alive]
    return sum(shares) / len(shares)


def remove(alive: Sequence[Groups], scores: Sequence[Groups], wanted: float) -> list[Groups]:
    """Remove groups until at most the share ``wanted`` is left.

    Args:
        alive: which groups are left, True or False.
        scores: what each is worth, such as its squared norm.
        wanted: density, 0 to 1.

    Returns:
        What is left. A layer without rows or without columns loses all of both.
    """
    import torch

    layers = torch.cat([torch.full((len(own.rows) + len(own.columns),), i) for i, own in enumerate(alive)])
    is_row = torch.cat([torch.arange(len(own.rows) + len(own.columns)) < len(own.rows) for own in alive])
    sizes = torch.tensor([[len(own.rows), len(own.columns)] for own in alive], dtype=torch.float64)
    left = torch.cat([torch.cat([own.rows, own.columns]) for own in alive])
    worth = torch.cat([torch.cat([own.rows, own.columns]) for own in scores]).double()
    start = density(alive)
    for part in range(1, ROUNDS + 1):
        goal = start + (wanted - start) * part / ROUNDS
        left = _round(left, worth, layers, is_row, sizes, goal)
    return [_finished(*own) for own in _divided(left, alive)]


def _round(
    left: torch.Tensor,
    worth: torch.Tensor,
    layers: torch.Tensor,
    is_row: torch.Tensor,
    sizes: torch.Tensor,
    goal: float,
) -> torch.Tensor:
    """Remove the fewest groups, those of the least worth per element, that bring the density down to the goal."""
    import torch

    counts = _counts(left, layers, is_row, len(sizes))
    others = torch.where(is_row, counts[layers, 1], counts[layers, 0])
    share = others / sizes.prod(dim=1)[layers]
    order = torch.where(left, worth / share.clamp_min(1e-30), torch.inf).argsort(stable=True)
    low, high = 0, int(left.sum())
    if _density(counts, sizes) <= goal:
        return left
    while high - low > 1:
        middle = (low + high) // 2
        gone = order[:middle]
        after = counts - _counts_of(gone, layers, is_row, len(sizes))
        low, high = (low, middle) if _density(after, sizes) <= goal else (middle, high)
    left = left.clone()
    left[order[:high]] = False
    return left


def _counts(left: torch.Tensor, layers: torch.Tensor, is_row: torch.Tensor, count: int) -> torch.Tensor:
    return _counts_of(left.nonzero().flatten(), layers, is_row, count)


def _counts_of(groups: torch.Tensor, layers: torch.Tensor, is_row: torch.Tensor, count: int) -> torch.Tensor:
    """How many rows and columns of each layer, shape (layers, 2)."""
    slot = 2 * layers[groups] + (~is_row[groups]).long()
    return slot.bincount(minlength=2 * count).reshape(count, 2).double()


def _density(counts: torch.Tensor, sizes: torch.Tensor) -> float:
    return float((counts.prod(dim=1) / sizes.prod(dim=1)).mean())


def _divided(left: torch.Tensor, alive: Sequence[Groups]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    parts = left.split([length for own in alive for length in (len(own.rows), len(own.columns))])
    return list(zip(parts[::2], parts[1::2], strict=True))


def _finished(rows: torch.Tensor, columns: torch.Tensor) -> Groups:
    import torch

    if rows.any() and columns.any():
        return Groups(rows, columns)
    return Groups(torch.zeros_like(rows), torch.zeros_like(columns))
