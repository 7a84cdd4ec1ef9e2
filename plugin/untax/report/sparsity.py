"""The sparsity of adapters side by side, as text and as JSON: PAFT's figure 2 in numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from untax import __version__
from untax.adapters.sparsity import LayerSparsity, Sparsity, Thresholds, by_block, by_kind, summarise

OUTSIDE = "outside"
"""What tables call the layers that are in no decoder layer: embedding, output layer."""
_MISSING = "-"


@dataclass(frozen=True)
class Measured:
    """One adapter, or whole model, with its measures.

    Attributes:
        name: what tables and figures call it.
        layers: every layer's measures, at least one.
        about: what JSON says of it beside the measures.
    """

    name: str
    layers: tuple[LayerSparsity, ...]
    about: dict[str, Any] = dataclasses.field(default_factory=dict)

    @cached_property
    def overall(self) -> Sparsity:
        """All layers together."""
        return summarise(self.layers)

    @cached_property
    def kinds(self) -> dict[str, Sparsity]:
        """By module type."""
        return by_kind(self.layers)

    @cached_property
    def blocks(self) -> dict[str, Sparsity]:
        """By decoder layer, from 0."""
        return {OUTSIDE if block is None else str(block): found for block, found in by_block(self.layers).items()}

    @cached_property
    def each(self) -> dict[str, Sparsity]:
        """Every layer by itself."""
        return {layer.module: summarise([layer]) for layer in self.layers}


def percent(share: float | None) -> str:
    """A share with two decimals, or three characters more where these would turn some into none or into all.

    >>> percent(0.12345), percent(0.00001), percent(0.99999), percent(1.0), percent(None)
    ('12.35%', '<0.01%', '>99.99%', '100.00%', '-')
    """
    if share is None:
        return _MISSING
    text = f"{100 * share:.2f}%"
    if share > 0 and text == "0.00%":
        return "<0.01%"
    return ">99.99%" if share < 1 and text == "100.00%" else text


def sparsity_text(found: Sequence[Measured], thresholds: Thresholds, *, layers: bool, blocks: bool) -> str:
    """A line for each adapter, then the module types: in full for one adapter, side by side for several.

    Args:
        found: the adapters, at least one.
        thresholds: what they were measured with.
        layers: list every layer too.
        blocks: list every decoder layer too.
    """
    parts = [_in_full("", {one.name: one.overall for one in found}, thresholds)]
    sections = (("module", "kinds", True), ("block", "blocks", blocks), ("layer", "each", layers))
    for title, measure, shown in sections:
        if shown and len(found) == 1:
            parts.append(_in_full(title, getattr(found[0], measure), thresholds))
        elif shown:
            parts.append(_side_by_side(title, [(one.name, getattr(one, measure)) for one in found], thresholds))
    note = (
        f"{_names(thresholds)[0]}: share of the elements of |delta| below it; {_names(thresholds)[1]}: below so many\n"
        "times the RMS of the base's tensor. mean: over the layers, as in PAFT's figure 2; all: over all elements."
    )
    return "\n\n".join([*parts, note])


def _names(thresholds: Thresholds) -> tuple[str, str]:
    return f"<{thresholds.absolute:g}", f"<{thresholds.relative:g} RMS"


def _in_full(title: str, groups: dict[str, Sparsity], thresholds: Thresholds) -> str:
    absolute, relative = _names(thresholds)
    spans = [("", 3), (absolute, 2), (relative, 2), ("zeros", 2), ("", 3), ("base's", 1)]
    header = [title, "layers", "elements", *["mean", "all"] * 3, "L1", "Frobenius", "RMS", "RMS"]
    return _columns(spans, [header, *([name, *_cells(group)] for name, group in groups.items())])


def _cells(found: Sparsity) -> list[str]:
    shares = (
        *(found.mean_below, found.below, found.mean_below_relative, found.below_relative),
        *(found.mean_zeros, found.zeros),
    )
    sizes = (found.l1, found.frobenius, found.rms, found.base_rms)
    numbers = [_MISSING if size is None else f"{size:.4g}" for size in sizes]
    return [str(found.layers), f"{found.elements:,}", *map(percent, shares), *numbers]


def _side_by_side(title: str, found: Sequence[tuple[str, dict[str, Sparsity]]], thresholds: Thresholds) -> str:
    """A line for each group that any adapter has; the shares are means over the group's layers."""
    names = list(dict.fromkeys(name for _, groups in found for name in groups))
    if OUTSIDE in names:
        names.sort(key=OUTSIDE.__eq__)
    header = [title, *_names(thresholds) * len(found)]
    lines = [[name, *(cell for _, groups in found for cell in _shares(groups.get(name)))] for name in names]
    return _columns([("mean of layers", 1), *((name, 2) for name, _ in found)], [header, *lines])


def _shares(group: Sparsity | None) -> tuple[str, str]:
    return ("", "") if group is None else (percent(group.mean_below), percent(group.mean_below_relative))


def _columns(spans: Sequence[tuple[str, int]], lines: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first to the left and the others to the right.

    Args:
        spans: the upper line of the header: a text, and over how many columns it stands.
        lines: the lower line of the header, and the others.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    above, first = [], 0
    for text, count in spans:
        lacking = len(text) - sum(widths[first : first + count]) - 2 * (count - 1)
        widths[first + (first > 0) * (count - 1)] += max(0, lacking)
        width = sum(widths[first : first + count]) + 2 * (count - 1)
        above.append(text.rjust(width) if first else text.ljust(width))
        first += count
    rows = [
        [
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join("  ".join(row).rstrip() for row in [above, *rows])


def sparsity_json(found: Sequence[Measured], thresholds: Thresholds) -> dict[str, Any]:
    """All numbers, with shares between 0 and 1; what was not measured is null."""
    return {
        "untax": __version__,
        "thresholds": dataclasses.asdict(thresholds),
        "adapters": [
            {
                "name": one.name,
                **one.about,
                "overall": dataclasses.asdict(one.overall),
                "modules": {name: dataclasses.asdict(group) for name, group in one.kinds.items()},
                "blocks": {name: dataclasses.asdict(group) for name, group in one.blocks.items()},
                "layers": [_layer_json(layer, one.each[layer.module]) for layer in one.layers],
            }
            for one in found
        ],
    }


def _layer_json(layer: LayerSparsity, group: Sparsity) -> dict[str, Any]:
    return {
        "module": layer.module,
        "elements": layer.elements,
        "count_below": layer.below,
        "count_below_relative": layer.below_relative,
        "count_zeros": layer.zeros,
        "below": group.below,
        "below_relative": group.below_relative,
        "zeros": group.zeros,
        "l1": group.l1,
        "frobenius": group.frobenius,
        "rms": group.rms,
        "base_rms": group.base_rms,
    }
