"""What is drawn of every pair of adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from untax.adapters.interference import Pair
from untax.report.interference import Interference, signed
from untax.report.sparsity import percent


@dataclass(frozen=True)
class Measure:
    """One column of the picture.

    Attributes:
        title: above it.
        value: of a pair.
        text: of a value.
        chance: what independent deltas give: the middle of the colours.
        colours: their name.
        least: the lowest value that there can be; the highest is 1.
    """

    title: str
    value: Callable[[Pair], float | None]
    text: Callable[[float | None], str]
    chance: float
    colours: str
    least: float = 0.0

    def reach(self, found: Interference) -> float:
        """How far values go to either side of chance."""
        pairs = [*found.overall.values(), *(one for layer in found.by_layer.values() for one in layer.values())]
        values = [value for one in pairs if (value := self.value(one)) is not None]
        return max((abs(value - self.chance) for value in values), default=0.0) or 1.0

    def limits(self, found: Interference) -> tuple[float, float]:
        """The lowest and the highest value that a scale shows."""
        reach = self.reach(found)
        return max(self.least, self.chance - reach), min(1.0, self.chance + reach)


def measures(found: Interference) -> tuple[Measure, ...]:
    """Cosine, sign conflict, overlap."""
    return (
        Measure("cosine", lambda one: one.cosine, signed, 0.0, "RdBu", -1.0),
        Measure("sign conflict", lambda one: one.conflict, percent, 0.5, "RdBu_r"),
        Measure(f"overlap of the largest {found.top:.4g}", lambda one: one.overlap, percent, found.top, "PuOr_r"),
    )
