"""Two adapters that get in each other's way, layer by layer, as bars."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from untax.adapters.interference import alone
from untax.report.interference import Interference, length
from untax.report.interference_measures import Measure, measures
from untax.report.picture import short
from untax.report.sparsity import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NAMES = 60
"""So many layers have room for their names."""


def draw_bars(figure: Figure, found: Interference) -> None:
    """A bar for each layer, from what independent deltas give to what these give; and what TIES drops of either."""
    shown = range(0, len(found.layers), math.ceil(len(found.layers) / MOST_NAMES))
    figure.set_size_inches(11.0, 1.6 + 0.14 * len(shown))
    panels = figure.subplots(1, 4, sharey=True)
    for axes, measure in zip(panels, measures(found), strict=False):
        _bars(axes, found, measure)
    _dropped(panels[3], found)
    panels[0].set_yticks(shown, [found.layers[number].module for number in shown])
    panels[0].set_ylim(len(found.layers) - 0.4, -0.6)
    for axes in panels:
        axes.grid(axis="x", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[3].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)


def _bars(axes: Axes, found: Interference, measure: Measure) -> None:
    pair = (0, 1)
    for place, layer in enumerate(found.layers):
        measured = found.by_layer[layer.module].get(pair)
        value = None if measured is None else measure.value(measured)
        if value is not None:
            axes.barh(place, value - measure.chance, left=measure.chance, height=0.8, color="C0")
    overall = measure.value(found.overall[pair])
    axes.axvline(measure.chance, color="0.4", linewidth=0.8)
    if overall is not None:
        axes.axvline(overall, color="C3", linewidth=0.8, linestyle="--")
    low, high = measure.limits(found)
    margin = 0.05 * (high - low)
    axes.set_xlim(low - margin, high + margin)
    axes.set_title(f"{measure.title}\nall layers (dashed): {measure.text(overall)}", fontsize=8)
    axes.set_xlabel(f"independent deltas: {measure.text(measure.chance)}")


def _dropped(axes: Axes, found: Interference) -> None:
    for number, (name, whole) in enumerate(zip(found.names, found.alone, strict=True)):
        shares = {place: alone([layer], number).dropped for place, layer in enumerate(found.layers)}
        known = {place: share for place, share in shares.items() if share is not None}
        label = f"{short(name)}: norm {length(whole.norm)}, {percent(whole.dropped)} dropped"
        axes.plot([*known.values()], [*known], "os"[number], color=f"C{number}", ms=3, label=label)
    axes.set_xlim(left=0.0)
    axes.set_title("share of each one's magnitude\nthat electing signs drops", fontsize=8)
