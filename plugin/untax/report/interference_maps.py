"""How much several adapters get in each other's way, as heat maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from untax.adapters.interference import alone
from untax.report.interference import Interference, length
from untax.report.interference_measures import Measure, measures
from untax.report.picture import short
from untax.report.sparsity import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WRITTEN = 8
"""Up to so many adapters the numbers stand in the matrices."""
_LABEL = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1}
_TICKS = 40
"""So many names have room beside the lower maps."""


def draw_maps(figure: Figure, found: Interference) -> None:
    """Above, a K x K map of each measure over all layers, and the adapters; below, the layers against the pairs.

    White is what independent deltas give, red where they agree less; grey means nothing to compare. On the right is
    what electing signs drops of each adapter.
    """
    above = 1.2 + 0.45 * len(found.names)
    below = 1.6 + 0.14 * min(len(found.layers), _TICKS)
    figure.set_size_inches(14.0, above + below)
    axes = figure.subplots(2, 4, squeeze=False, height_ratios=(above, below))
    for column, measure in enumerate(measures(found)):
        reach = measure.reach(found)
        _pairs(axes[0][column], found, measure, reach, named=column == 0)
        image = _by_layer(axes[1][column], found, measure, reach, named=column == 0)
        scale = figure.colorbar(image, ax=list(axes[:, column]), fraction=0.05)
        scale.ax.set_ylim(*measure.limits(found))
    _adapters(axes[0][3], found)
    figure.colorbar(_dropped_by_layer(axes[1][3], found), ax=list(axes[:, 3]), fraction=0.05)


def _adapters(axes: Axes, found: Interference) -> None:
    places = range(len(found.names))
    bars = axes.barh(places, [one.dropped or 0.0 for one in found.alone], color="indianred")
    axes.bar_label(bars, [f"{percent(one.dropped)}, norm {length(one.norm)}" for one in found.alone], padding=2)
    axes.set_yticks(places, [short(name) for name in found.names])
    axes.set_ylim(len(found.names) - 0.5, -0.5)
    # Room to the right of the longest bar for its numbers.
    axes.set_xlim(0.0, 2.0 * max((one.dropped or 0.0 for one in found.alone), default=0.0) or 1.0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("dropped by electing signs, all layers", fontsize=8)


def _dropped_by_layer(axes: Axes, found: Interference) -> Any:
    from matplotlib import colormaps

    numbers = range(len(found.names))
    shares = [[alone([layer], number).dropped for number in numbers] for layer in found.layers]
    table = [[math.nan if share is None else share for share in row] for row in shares]
    colours = colormaps["Reds"].with_extremes(bad="0.85")
    image = axes.imshow(table, aspect="auto", interpolation="nearest", cmap=colours, vmin=0.0)
    axes.set_yticks([])
    _aslant(axes, numbers, [_shorter(name) for name in found.names])
    axes.set_title("dropped of each adapter, by layer", fontsize=8)
    return image


def _pairs(axes: Axes, found: Interference, measure: Measure, reach: float, *, named: bool) -> None:
    count = len(found.names)
    table = [[math.nan] * count for _ in range(count)]
    for (one, other), measured in found.overall.items():
        value = measure.value(measured)
        for row, column in ((one, other), (other, one)):
            table[row][column] = math.nan if value is None else value
            if count <= _WRITTEN:
                axes.text(column, row, measure.text(value), ha="center", va="center", bbox=_LABEL)
    _map(axes, table, measure, reach)
    names = [short(name) for name in found.names]
    _aslant(axes, range(count), names)
    axes.set_yticks(range(count), names if named else [""] * count)
    axes.set_title(f"{measure.title}, all layers", fontsize=8)


def _by_layer(axes: Axes, found: Interference, measure: Measure, reach: float, *, named: bool) -> Any:
    table = []
    for layer in found.layers:
        measured = found.by_layer[layer.module]
        values = [measure.value(measured[pair]) if pair in measured else None for pair in found.pairs]
        table.append([math.nan if value is None else value for value in values])
    image = _map(axes, table, measure, reach)
    shown = range(0, len(found.layers), math.ceil(len(found.layers) / _TICKS))
    axes.set_yticks(shown, [found.layers[number].module for number in shown] if named else [""] * len(shown))
    places = range(0, len(found.pairs), math.ceil(len(found.pairs) / _TICKS))
    names = [" + ".join(_shorter(found.names[one]) for one in found.pairs[number]) for number in places]
    _aslant(axes, places, names)
    axes.set_title(f"{measure.title}, by layer", fontsize=8)
    return image


def _map(axes: Axes, table: list[list[float]], measure: Measure, reach: float) -> Any:
    from matplotlib import colormaps

    return axes.imshow(
        table,
        aspect="auto",
        interpolation="nearest",
        cmap=colormaps[measure.colours].with_extremes(bad="0.85"),
        vmin=measure.chance - reach,
        vmax=measure.chance + reach,
    )


def _aslant(axes: Axes, places: Sequence[int], names: Sequence[str]) -> None:
    angle = 30 if len(names) <= _WRITTEN else 90
    if angle == 90:
        axes.set_xticks(places, names, rotation=90)
    else:
        axes.set_xticks(places, names, rotation=angle, ha="right", rotation_mode="anchor")


def _shorter(name: str) -> str:
    return name if len(name) <= 12 else f"...{name[-9:]}"
