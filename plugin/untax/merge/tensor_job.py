"""One tensor of the output: its statistics, then its rows, in fp32 and rounded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from untax.adapters.changes import LowRankChange
from untax.merge.deltas import TensorDeltas, adapters_of
from untax.merge.method import Block, Job, Method, Values

if TYPE_CHECKING:
    import torch

    Factors = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False)
class TensorJob:
    """A tensor that the merge changes.

    Attributes:
        method: how.
        deltas: of all models.
        values: the method's parameters for this tensor.
        seed: of what is random.
        scales: what the merged delta is multiplied by; one output for each.
        whole: what the method's ``whole`` returned.
    """

    method: Method
    deltas: TensorDeltas
    values: Values
    seed: int
    scales: Sequence[float]
    whole: Any = None

    def prepare(self) -> Any:
        """The method's statistics of the whole tensor; for a sum of deltas its concatenated factors."""
        if self.method.coefficients is not None:
            return self._concatenated()
        return None if self.method.statistics is None else self.method.statistics(self.as_job())

    def as_job(self) -> Job:
        """What the method's own functions see of it."""
        adapters = adapters_of(self.deltas.changes)
        return Job(self.deltas, self.values, self.seed, self.whole, self.deltas.base, adapters)

    def merged(self, statistics: Any, rows: slice, base: torch.Tensor) -> list[torch.Tensor]:
        """The merged rows for each scale, in fp32.

        Args:
            statistics: what ``prepare`` returned.
            rows: one of the tensor's blocks.
            base: the same rows of the base, fp32, shape (n, columns).
        """
        factor = 1.0 if self.method.coefficients is None else self.method.coefficients(self.values)[1]
        delta = self._merged_delta(statistics, rows, base)
        # base + x * (factor * base + delta - base)
        return [base.mul(1 + scale * (factor - 1)).add_(delta, alpha=scale) for scale in self.scales]

    def _merged_delta(self, statistics: Any, rows: slice, base: torch.Tensor) -> torch.Tensor:
        if self.method.coefficients is not None:
            return self._summed(statistics, rows, base)
        deltas = self.deltas.stacked(rows, base)
        shape = self.deltas.shape
        block = Block(deltas, self.deltas.tensor, rows, shape, self.values, self.seed, statistics, base)
        return self.method.merge(block)

    def _summed(self, factors: Factors | None, rows: slice, base: torch.Tensor) -> torch.Tensor:
        """One product of the concatenated factors for all low-rank deltas, and the others one by one."""
        import torch

        assert self.method.coefficients is not None
        delta = torch.zeros_like(base) if factors is None else factors[0][rows] @ factors[1]
        for model, weight in enumerate(self.method.coefficients(self.values)[0]):
            if not isinstance(self.deltas.changes[model], LowRankChange) and self.deltas.has(model) and weight:
                delta.add_(self.deltas.rows(model, rows, base), alpha=weight)
        return delta

    def _concatenated(self) -> Factors | None:
        """([c_1 s_1 B_1 | c_2 s_2 B_2 ...], [A_1; A_2; ...]): their product is the weighted sum of the deltas."""
        import torch

        assert self.method.coefficients is not None
        ups, downs = [], []
        for change, weight in zip(self.deltas.changes, self.method.coefficients(self.values)[0], strict=True):
            if isinstance(change, LowRankChange) and weight:
                up, down = change.factors()
                ups.append(up * (weight * change.scale))
                downs.append(down)
        return (torch.cat(ups, dim=1), torch.cat(downs)) if ups else None
