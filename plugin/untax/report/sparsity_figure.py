"""The sparsity of adapters as bars: PAFT's figure 2, and the same by module type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from untax.adapters.sparsity import Sparsity, Thresholds
from untax.report.picture import picture, short
from untax.report.sparsity import Measured, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Share = Callable[[Sparsity], float | None]

_TOPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Where the scale may end: the first that no bar is above."""


def draw_sparsity(path: Path, found: Sequence[Measured], thresholds: Thresholds) -> None:
    """Write a PNG or SVG: on the left a bar for each adapter, on the right one for each of its module types.

    The bars are means over the layers, as in figure 2 of PAFT. A second row shows the shares below the relative
    threshold if any adapter has them. The same numbers give the same bytes.
    """
    rows: list[tuple[str, Share]] = [(f"|delta| < {thresholds.absolute:g}", lambda group: group.mean_below)]
    if any(one.overall.mean_below_relative is not None for one in found):
        label = f"|delta| < {thresholds.relative:g} x RMS of the base"
        rows.append((label, lambda group: group.mean_below_relative))
    kinds = list(dict.fromkeys(kind for one in found for kind in one.kinds))
    left, right = 0.6 * len(found) + 0.2, len(kinds) * _group_width(found)
    with picture(path, font=8) as figure:
        figure.set_size_inches(left + right + 1.4, 3.2 * len(rows) + 0.4)
        table = figure.subplots(len(rows), 2, squeeze=False, sharey="row", width_ratios=(left, right))
        for (label, share), (adapters, modules) in zip(rows, table, strict=True):
            _overall(adapters, found, share)
            _by_kind(modules, found, kinds, share)
            _scale(adapters, [share(group) for one in found for group in (one.overall, *one.kinds.values())])
            adapters.set_ylabel(f"share of elements with\n{label}")
        table[0][0].set_title("mean of all layers", fontsize=9)
        table[0][1].set_title("mean of the layers of one module type", fontsize=9)
        if len(found) > 1:
            handles, names = table[0][1].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(found)), frameon=False)


def _group_width(found: Sequence[Measured]) -> float:
    """Inches for one module type."""
    return 0.75 if len(found) == 1 else 0.25 * len(found) + 0.3


def _overall(axes: Axes, found: Sequence[Measured], share: Share) -> None:
    for place, one in enumerate(found):
        _bar(axes, place, 0.8, share(one.overall), place, upright=False)
    _names(axes, [short(one.name) for one in found], 0.6)


def _by_kind(axes: Axes, found: Sequence[Measured], kinds: Sequence[str], share: Share) -> None:
    width = 0.8 / len(found)
    for number, one in enumerate(found):
        for place, kind in enumerate(kinds):
            if kind in one.kinds:
                start = place - 0.4 + (number + 0.5) * width
                _bar(axes, start, width, share(one.kinds[kind]), number, upright=len(found) > 1)
        # A name of its own, whatever the first module type is, and only one in the legend.
        axes.bar([0], [0], color=f"C{number % 10}", label=one.name)
    _names(axes, kinds, _group_width(found))


def _bar(axes: Axes, place: float, width: float, share: float | None, number: int, *, upright: bool) -> None:
    bars = axes.bar([place], [share or 0.0], 0.92 * width, color=f"C{number % 10}")
    axes.bar_label(bars, [percent(share)], fontsize=6 if upright else 7, rotation=90 if upright else 0, padding=2)


def _names(axes: Axes, names: Sequence[str], inches: float) -> None:
    """Names below the bars, aslant if they are wider than their place."""
    aslant = max(map(len, names)) * 0.065 > inches
    axes.set_xticks(
        range(len(names)),
        names,
        rotation=30 if aslant else 0,
        ha="right" if aslant else "center",
        rotation_mode="anchor",
    )
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _scale(axes: Axes, shares: Sequence[float | None]) -> None:
    highest = max((share for share in shares if share is not None), default=0.0)
    top = next(top for top in _TOPS if top >= highest)
    # Room above the highest bar for its number, upright.
    axes.set_ylim(0, 1.25 * top)
    ticks = [top * fifths / 5 for fifths in range(6)]
    axes.set_yticks(ticks, [f"{100 * tick:g}%" for tick in ticks])
