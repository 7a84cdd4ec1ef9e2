"""How much adapters get in each other's way, as text and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from math import sqrt
from typing import Any

from untax import __version__
from untax.adapters.interference import Alone, LayerInterference, Pair, alone, dropped, mean_norm, pair, sum_norm
from untax.report.sparsity import percent

MOST = 10
"""So many layers are listed when not all are."""
APART = 4
"""Up to so many adapters each has its own share in the table of layers."""
_MISSING = "-"


@dataclass(frozen=True)
class Interference:
    """Several adapters with their measures.

    Attributes:
        names: what tables and figures call the adapters.
        layers: every layer that any of them has, at least one.
        top: the share of a layer's elements that counts as its largest.
        about: what JSON says of each adapter beside the measures.
    """

    names: tuple[str, ...]
    layers: tuple[LayerInterference, ...]
    top: float
    about: tuple[dict[str, Any], ...] = field(default=())

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The numbers of the adapters of every pair."""
        return tuple(combinations(range(len(self.names)), 2))

    @cached_property
    def alone(self) -> tuple[Alone, ...]:
        """Every adapter over the layers that it has."""
        return tuple(alone(self.layers, number) for number in range(len(self.names)))

    @cached_property
    def overall(self) -> dict[tuple[int, int], Pair]:
        """Every pair over all layers that both have."""
        return {(one, other): pair(self.layers, one, other) for one, other in self.pairs}

    @cached_property
    def by_layer(self) -> dict[str, dict[tuple[int, int], Pair]]:
        """Module -> the pairs that both have it."""
        return {
            layer.module: {
                (one, other): pair([layer], one, other) for one, other in combinations(sorted(layer.adapters), 2)
            }
            for layer in self.layers
        }

    def mean(self, module: str, measure: Callable[[Pair], float | None]) -> float | None:
        """A measure of one layer, averaged over the pairs that have it."""
        values = [value for found in self.by_layer[module].values() if (value := measure(found)) is not None]
        return sum(values) / len(values) if values else None


def interference_text(found: Interference, *, layers: bool) -> str:
    """The adapters, a matrix for each measure over all layers, the layers that conflict most, and what it means.

    Args:
        found: the measures.
        layers: list every layer, in order, instead of those that conflict most.
    """
    parts = [
        _adapters(found),
        _matrix(found, "cosine", lambda one: signed(one.cosine)),
        _matrix(found, "sign conflict", lambda one: percent(one.conflict)),
        _matrix(found, f"largest {found.top:.4g}", lambda one: percent(one.overlap)),
    ]
    if len({one.layers for one in found.overall.values()} | {len(found.layers)}) > 1:
        own = [str(sum(number in layer.adapters for layer in found.layers)) for number in range(len(found.names))]
        parts.append(_matrix(found, "layers in common", lambda one: str(one.layers), own))
    parts += [_layers(found, layers), _notes(found), meaning(found)]
    return "\n\n".join(parts)


def signed(value: float | None) -> str:
    """A cosine.

    >>> signed(0.12345), signed(-1.0), signed(None)
    ('0.123', '-1.000', '-')
    """
    return _MISSING if value is None else f"{value:.3f}"


def length(value: float) -> str:
    """A norm.

    >>> length(2.57), length(123456.0), length(0.0)
    ('2.570', '1.235e+05', '0')
    """
    return f"{value:#.4g}".rstrip(".") if value else "0"


def meaning(found: Interference) -> str:
    """What the numbers say about merging all adapters, which is arithmetic."""
    norms = {name: one.norm for name, one in zip(found.names, found.alone, strict=True) if one.norm}
    if not norms:
        return "All deltas are zero: there is nothing to merge."
    longest, shortest = max(norms, key=norms.__getitem__), min(norms, key=norms.__getitem__)
    total, orthogonal = sum_norm(found.layers), sqrt(sum(norm * norm for norm in norms.values()))
    lines = [f"{name}: all zeros, it adds nothing." for name in found.names if name not in norms]
    if len(norms) > 1:
        lines += [
            f"Norm: that of {longest} is {norms[longest] / norms[shortest]:.2f} times that of {shortest}. "
            "All would be as long with these weights:",
            ", ".join(f"{name} {norms[longest] / norm:.2f}" for name, norm in norms.items()) + ".",
        ]
    return "\n".join(
        [
            *lines,
            f"Added (task_arithmetic, weights of 1) they have the norm {length(total)}; orthogonal ones would have "
            f"{length(orthogonal)},",
            f"and {longest} alone has {length(norms[longest])}. Their plain mean (linear) has "
            f"{length(total / len(found.names))}.",
            "Electing signs (ties with equal weights and density 1) drops, of each one's own magnitude:",
            ", ".join(f"{name} {percent(one.dropped)}" for name, one in zip(found.names, found.alone, strict=True))
            + ".",
        ]
    )


def _adapters(found: Interference) -> str:
    lines = [["adapter", "norm", "mean |delta|", "dropped by signs"]]
    for name, one in zip(found.names, found.alone, strict=True):
        lines.append([name, length(one.norm), f"{one.mean:#.3g}", percent(one.dropped)])
    return _columns(lines)


def _matrix(found: Interference, title: str, text: Callable[[Pair], str], own: Sequence[str] = ()) -> str:
    """All pairs; ``own`` is what stands on the diagonal."""
    lines = [[title, *found.names]]
    for row, name in enumerate(found.names):
        cells = [
            (own[row] if own else "") if row == column else text(found.overall[min(row, column), max(row, column)])
            for column in range(len(found.names))
        ]
        lines.append([name, *cells])
    return _columns(lines)


def _layers(found: Interference, every: bool) -> str:
    rows = list(found.layers)
    several = len(found.pairs) > 1
    title = "layer"
    if not every:
        rows = [layer for layer in rows if found.by_layer[layer.module]]
        # Stable: layers that conflict alike stay in the model's order.
        rows.sort(key=lambda layer: -(found.mean(layer.module, lambda one: one.conflict) or 0.0))
        rows, title = rows[:MOST], "layers that conflict most" if len(rows) > MOST else "layer"
    lines = [[title, "elements", "adapters", "cosine", "sign conflict", f"largest {found.top:.4g}", "dropped"]]
    for layer in rows:
        lines.append(
            [
                layer.module,
                f"{layer.elements:,}",
                str(len(layer.adapters)),
                signed(found.mean(layer.module, lambda one: one.cosine)),
                percent(found.mean(layer.module, lambda one: one.conflict)),
                percent(found.mean(layer.module, lambda one: one.overlap)),
                _dropped(layer, len(found.names)),
            ]
        )
    together = "" if len(found.names) <= APART else "; dropped: of all adapters together"
    return _columns(lines) + (f"\n(means over the pairs{together})" if several else "")


def _dropped(layer: LayerInterference, count: int) -> str:
    """Of each adapter in the order of their names, or of all together where these are many."""
    if count > APART:
        return percent(dropped([layer]))
    return "/".join(percent(alone([layer], number).dropped) for number in range(count))


def _notes(found: Interference) -> str:
    largest, chance = f"largest {found.top:.4g}", percent(found.top)
    return (
        "norm: the Frobenius norm of the delta s*B@A. cosine: of the deltas as vectors. sign conflict: share of\n"
        f"|a|+|b| at elements whose signs differ. {largest}: share of the one's largest elements of a layer that\n"
        f"are the other's too. Independent deltas give a cosine of 0, 50% and {chance}. Each pair over the layers\n"
        "that both have. dropped: share of an adapter's own magnitude where the sum of all deltas has the other sign."
    )


def _columns(lines: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        for line in lines
    )


def interference_json(found: Interference) -> dict[str, Any]:
    """All numbers, with shares between 0 and 1; what is not defined is null. Adapters are numbered from 0."""
    return {
        "untax": __version__,
        "top": found.top,
        "adapters": [
            {"name": name, **_alone_json(one), **about}
            for name, one, about in zip(found.names, found.alone, found.about or ({},) * len(found.names), strict=True)
        ],
        "overall": {
            "layers": len(found.layers),
            "elements": sum(layer.elements for layer in found.layers),
            "sum_norm": sum_norm(found.layers),
            "mean_norm": mean_norm(found.layers),
            "dropped": dropped(found.layers),
            "pairs": _pairs_json(found.overall),
        },
        "layers": [
            {
                "module": layer.module,
                "elements": layer.elements,
                "adapters": list(layer.adapters),
                "frobenius": [sqrt(layer.inner[number][number]) for number in layer.adapters],
                "l1": [layer.l1[number] for number in layer.adapters],
                "dropped": dropped([layer]),
                "dropped_of_each": [alone([layer], number).dropped for number in layer.adapters],
                "pairs": _pairs_json(found.by_layer[layer.module]),
            }
            for layer in found.layers
        ],
    }


def _alone_json(one: Alone) -> dict[str, Any]:
    return {
        "layers": one.layers,
        "elements": one.elements,
        "frobenius": one.norm,
        "l1": one.l1,
        "mean_magnitude": one.mean,
        "rms": one.rms,
        "dropped": one.dropped,
    }


def _pairs_json(pairs: dict[tuple[int, int], Pair]) -> list[dict[str, Any]]:
    return [
        {
            "adapters": list(numbers),
            "layers": one.layers,
            "cosine": one.cosine,
            "sign_conflict": one.conflict,
            "overlap": one.overlap,
        }
        for numbers, one in pairs.items()
    ]
