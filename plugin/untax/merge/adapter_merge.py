"""A merge of adapters into one adapter, without the base's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from untax.adapters.stored import StoredAdapter
from untax.errors import UntaxError
from untax.merge.kind import Advance, Kind, Made
from untax.merge.plan import Plan, make_plan, unknown_keys

_WORST = 3


@dataclass(frozen=True)
class AdapterMerge(Kind):
    """See ``untax.merge.as_adapter``.

    Attributes:
        rank: R, or None for the sum of the ranks, which is exact.
    """

    rank: int | None = None
    what = "adapter"
    engine = "adapter"
    shows_progress = False

    @cached_property
    def plan(self) -> Plan:
        """The method and its parameters.

        Raises:
            UntaxError: the method's result is no sum of deltas.
        """
        plan = make_plan(self.config)
        if plan.method.coefficients is None:
            raise UntaxError(
                f"{plan.method.name} is not linear in the deltas, so that its result is no LoRA adapter.",
                where=f"{self.config.path}, key merge_method",
                fix="Use linear or task_arithmetic, or merge into a model.",
            )
        return plan

    def bytes_needed(self) -> int:
        """The factors in fp32, at most."""
        return sum(4 * info.elements for adapter in self._adapters() for info in adapter.tensors.values())

    def notes(self) -> list[str]:
        """Keys that nobody reads.

        Raises:
            UntaxError: the configuration or a parameter is wrong.
        """
        from untax.merge.as_adapter import check_linear

        self.plan.check()
        check_linear(self._adapters(), self.plan.base)
        for tensor in self.plan.base.tensors:
            self._coefficients(tensor)
        return [*unknown_keys(self.config), *self.plan.settings.unknown()]

    def describe(self) -> Iterator[str]:
        """Counts."""
        layers = {layer.module for adapter in self._adapters() for layer in adapter.layers}
        yield f"{self.plan.method.name} of {len(self._adapters())} adapters into one, {len(layers)} layers."
        yield (
            "Exact: the rank of a layer is the sum of its ranks." if self.rank is None else f"Cut to rank {self.rank}."
        )

    def identity(self) -> dict[str, Any]:
        """The rank decides as well."""
        return {"engine": self.engine, "rank": self.rank}

    def write(self, parts: Sequence[Path], scales: Sequence[float], names: Sequence[str], advance: Advance) -> Made:
        """One adapter for each scale, all from the same factors."""
        from untax.merge.as_adapter import write_combined

        plan = self.plan
        combined = write_combined(
            parts,
            self._adapters(),
            self._coefficients,
            rank=self.rank,
            scales=scales,
            base=plan.base,
            base_name=plan.source.path,
            base_revision=plan.source.revision,
            progress=advance,
        )
        facts: dict[str, Any] = {"method": plan.method.name, "rank": combined.rank}
        if self.rank is None:
            return Made([{} for _ in parts], {**facts, "exact": True})
        errors = {layer.module: layer.error for layer in combined.layers}
        facts |= {"exact": not any(errors.values()), "relative_error": combined.error, "relative_errors": errors}
        cut = [_about(combined.error, errors, self.rank)] if any(errors.values()) else ["no layer had a larger rank."]
        return Made([{} for _ in parts], facts, cut)

    def card(self, facts: Mapping[str, Any]) -> dict[str, str]:
        """The method and what the cut cost."""
        lines = {"Method": f"`{facts['method']}`", "Rank": str(facts["rank"])}
        if self.rank is not None:
            lines["Relative error of the delta"] = f"{facts['relative_error']:.3g} (Frobenius norm)"
        return lines

    def _adapters(self) -> list[StoredAdapter]:
        return [adapter for adapter in self.plan.adapters() if adapter is not None]

    def _coefficients(self, tensor: str) -> list[float]:
        assert self.plan.method.coefficients is not None
        shares, factor = self.plan.method.coefficients(self.plan.settings.values(tensor))
        if abs(factor - 1) > 1e-9:
            raise UntaxError(
                f"The weights sum to {factor:g} for {tensor}: the merge would scale the base too.",
                where=self.config.path,
                fix="Say `normalize: true`, or let the weights sum to 1.",
            )
        return [share for share, one in zip(shares, self.plan.models, strict=True) if one.adapter is not None]


def _about(error: float, errors: Mapping[str, float], rank: int) -> str:
    worst = sorted(errors.items(), key=lambda item: (-item[1], item[0]))[:_WORST]
    listed = ", ".join(f"{module} {value:.3g}" for module, value in worst)
    return f"cut to rank {rank}: relative error of the delta {error:.3g}; worst layers: {listed} (all in untax.json)."
