"""How much adapters get in each other's way, as heat maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax.adapters.interference import Pair
from untax.files import new_file
from untax.report.interference import Interference, signed
from untax.report.sparsity import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 150
FORMATS = (".png", ".svg")
_WRITTEN = 8
"""Up to so many adapters the numbers stand in the matrices."""
_LABEL = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1}
_TICKS = 40
"""So many names have room beside the lower maps."""


@dataclass(frozen=True)
class _Measure:
    """One column of maps.

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


def draw_interference(path: Path, found: Interference) -> None:
    """Write a PNG or SVG: above, a K x K map of each measure over all layers; below, the layers against the pairs.

    White is what independent deltas give, red where they agree less; grey means nothing to compare. The same numbers
    give the same bytes.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measures = (
        _Measure("cosine", lambda one: one.cosine, signed, 0.0, "RdBu", -1.0),
        _Measure("sign conflict", lambda one: one.conflict, percent, 0.5, "RdBu_r"),
        _Measure(f"overlap of the largest {found.top:.4g}", lambda one: one.overlap, percent, found.top, "PuOr_r"),
    )
    above = 1.2 + 0.45 * len(found.names)
    below = 1.0 + 0.14 * min(len(found.layers), _TICKS)
    # Names of folders are no formulas; the ids in an SVG come from the salt.
    with rc_context({"text.parse_math": False, "font.size": 7, "svg.hashsalt": "untax"}), new_file(path) as part:
        figure = Figure(figsize=(11.0, above + below), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 3, squeeze=False, height_ratios=(above, below))
        for column, measure in enumerate(measures):
            reach = _reach(found, measure)
            _pairs(axes[0][column], found, measure, reach)
            image = _by_layer(axes[1][column], found, measure, reach, named=column == 0)
            scale = figure.colorbar(image, ax=list(axes[:, column]), fraction=0.05)
            scale.ax.set_ylim(max(measure.least, measure.chance - reach), min(1.0, measure.chance + reach))
        # Without the date and the library's version the same numbers give the same bytes.
        kind = path.suffix.lower()[1:]
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(part, format=kind, dpi=DPI, metadata=metadata)


def _pairs(axes: Axes, found: Interference, measure: _Measure, reach: float) -> None:
    count = len(found.names)
    table = [[math.nan] * count for _ in range(count)]
    for (one, other), measured in found.overall.items():
        value = measure.value(measured)
        for row, column in ((one, other), (other, one)):
            table[row][column] = math.nan if value is None else value
            if count <= _WRITTEN:
                axes.text(column, row, measure.text(value), ha="center", va="center", bbox=_LABEL)
    _map(axes, table, measure, reach)
    names = [name if len(name) <= 18 else f"...{name[-15:]}" for name in found.names]
    axes.set_xticks(range(count), names, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), names)
    axes.set_title(f"{measure.title}, all layers", fontsize=8)


def _by_layer(axes: Axes, found: Interference, measure: _Measure, reach: float, *, named: bool) -> Any:
    table = []
    for layer in found.layers:
        measured = found.by_layer[layer.module]
        values = [measure.value(measured[pair]) if pair in measured else None for pair in found.pairs]
        table.append([math.nan if value is None else value for value in values])
    image = _map(axes, table, measure, reach)
    shown = range(0, len(found.layers), math.ceil(len(found.layers) / _TICKS))
    axes.set_yticks(shown, [found.layers[number].module for number in shown] if named else [""] * len(shown))
    places = range(0, len(found.pairs), math.ceil(len(found.pairs) / _TICKS))
    names = [f"{one}, {other}" for one, other in (found.pairs[number] for number in places)]
    axes.set_xticks(places, names, rotation=0 if len(found.pairs) <= _WRITTEN else 90)
    axes.set_xlabel("pair of adapters, numbered from 0 as above")
    axes.set_title(f"{measure.title}, by layer", fontsize=8)
    return image


def _map(axes: Axes, table: list[list[float]], measure: _Measure, reach: float) -> Any:
    from matplotlib import colormaps

    return axes.imshow(
        table,
        aspect="auto",
        interpolation="nearest",
        cmap=colormaps[measure.colours].with_extremes(bad="0.85"),
        vmin=measure.chance - reach,
        vmax=measure.chance + reach,
    )


def _reach(found: Interference, measure: _Measure) -> float:
    """How far the colours go to either side of chance: as far as any value does."""
    pairs = [*found.overall.values(), *(one for layer in found.by_layer.values() for one in layer.values())]
    values = [value for one in pairs if (value := measure.value(one)) is not None]
    return max((abs(value - measure.chance) for value in values), default=0.0) or 1.0
