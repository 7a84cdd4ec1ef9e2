"""How sparse a fine-tuned delta is: PAFT's figure 2, layer by layer, and the same relative to the base's weights.

The figure's caption multiplies B and A without s; in the recipe that the paper trains by, alpha is r, and s is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from untax.adapters.norms import SPARSITY_THRESHOLD
from untax.errors import UntaxError

if TYPE_CHECKING:
    import torch

RELATIVE_THRESHOLD = 1e-3
"""|delta| below this many times the RMS of the base's tensor changes next to nothing in it."""

Advance = Callable[[int], object]
"""Called with a layer's number of elements when it was measured."""


@dataclass(frozen=True)
class Thresholds:
    """What counts as near zero; strictly below, as in the paper.

    Attributes:
        absolute: of |delta|.
        relative: of |delta| divided by the RMS of the base's tensor.
    """

    absolute: float = SPARSITY_THRESHOLD
    relative: float = RELATIVE_THRESHOLD


@dataclass(frozen=True)
class LayerSparsity:
    """One layer's delta.

    Attributes:
        module: the layer's name in the base model.
        elements: how many elements it has.
        below: how many are below the absolute threshold.
        below_relative: how many are below the relative one; None without the base.
        zeros: how many are exactly zero.
        l1: sum of |delta|.
        squares: sum of delta^2.
        base_rms: root mean square of the base's tensor; None without the base.
    """

    module: str
    elements: int
    below: int
    below_relative: int | None
    zeros: int
    l1: float
    squares: float
    base_rms: float | None

    @property
    def kind(self) -> str:
        """The module type: the last part of the name that is a word.

        A bias has a type of its own (``q_proj.bias``), and a number keeps the word before it (``proj.0``).
        """
        parts = self.module.split(".")
        start = len(parts) - 1
        while start > 0 and (parts[start].isdecimal() or parts[start] == "bias"):
            start -= 1
        return ".".join(parts[start:])

    @property
    def block(self) -> int | None:
        """The number of the decoder layer: the first number in the name; None outside (embedding, output layer)."""
        return next((int(part) for part in self.module.split(".") if part.isdecimal()), None)


@dataclass(frozen=True)
class Sparsity:
    """Several layers together.

    Attributes:
        layers: how many.
        elements: how many elements they have.
        mean_below: share below the absolute threshold, averaged over the layers without weights: the paper's number.
        below: the same share over all elements.
        mean_below_relative: like ``mean_below``, of the relative threshold; None without the base.
        below_relative: the same share over all elements.
        mean_zeros: share of exact zeros, averaged over the layers: what ``delta_sparsity`` sets.
        zeros: share of exact zeros over all elements.
        l1: sum of |delta|.
        frobenius: square root of the sum of delta^2.
        rms: root mean square of the delta's elements.
        base_rms: that of the base's elements in these layers; None without the base.
    """

    layers: int
    elements: int
    mean_below: float
    below: float
    mean_below_relative: float | None
    below_relative: float | None
    mean_zeros: float
    zeros: float
    l1: float
    frobenius: float
    rms: float
    base_rms: float | None


def measure_blocks(
    module: str, blocks: Iterable[torch.Tensor], thresholds: Thresholds, base_rms: float | None, *, where: Path
) -> LayerSparsity:
    """Count and sum one layer's delta, block by block; sums are kept in double precision.

    Args:
        module: the layer's name.
        blocks: the delta in parts of any shape, on the CPU; they are overwritten.
        thresholds: what counts as near zero.
        base_rms: of the base's tensor, if it is at hand.
        where: the folder that the delta comes from, for the error.

    Raises:
        UntaxError: the delta has NaN or infinity, which would count as not small.
    """
    import numpy
    import torch

    limit = None if base_rms is None else thresholds.relative * base_rms
    elements = below = below_relative = zeros = 0
    sums, squares = [], []
    for block in blocks:
        size = block.abs_().flatten()
        # NumPy counts several times faster than torch does.
        values = size.numpy()
        elements += values.size
        below += int(numpy.count_nonzero(values < thresholds.absolute))
        below_relative += 0 if limit is None else int(numpy.count_nonzero(values < limit))
        zeros += int(numpy.count_nonzero(values == 0))
        exact = size.double()
        sums.append(float(exact.sum()))
        squares.append(float(torch.dot(exact, exact)))
    if not all(map(math.isfinite, [*sums, *squares])):
        raise UntaxError(
            f"The delta of {module} has NaN or infinity.",
            where=where,
            fix="Its training diverged, or a file is damaged: train or copy it again.",
        )
    relative = None if limit is None else below_relative
    return LayerSparsity(module, elements, below, relative, zeros, math.fsum(sums), math.fsum(squares), base_rms)


def summarise(layers: Sequence[LayerSparsity]) -> Sparsity:
    """Layers together, at least one; relative measures are there if every layer has them."""
    elements = sum(layer.elements for layer in layers)
    relative = [layer.below_relative for layer in layers if layer.below_relative is not None]
    base = [layer.base_rms**2 * layer.elements for layer in layers if layer.base_rms is not None]
    known = len(relative) == len(base) == len(layers)
    squares = math.fsum(layer.squares for layer in layers)
    return Sparsity(
        layers=len(layers),
        elements=elements,
        mean_below=_mean([layer.below / layer.elements for layer in layers]),
        below=sum(layer.below for layer in layers) / elements,
        mean_below_relative=_mean([count / layer.elements for count, layer in zip(relative, layers, strict=True)])
        if known
        else None,
        below_relative=sum(relative) / elements if known else None,
        mean_zeros=_mean([layer.zeros / layer.elements for layer in layers]),
        zeros=sum(layer.zeros for layer in layers) / elements,
        l1=math.fsum(layer.l1 for layer in layers),
        frobenius=math.sqrt(squares),
        rms=math.sqrt(squares / elements),
        base_rms=math.sqrt(math.fsum(base) / elements) if known else None,
    )


def by_kind(layers: Iterable[LayerSparsity]) -> dict[str, Sparsity]:
    """Module type -> its layers together, in the order in which the types first occur."""
    groups: dict[str, list[LayerSparsity]] = {}
    for layer in layers:
        groups.setdefault(layer.kind, []).append(layer)
    return {kind: summarise(group) for kind, group in groups.items()}


def by_block(layers: Iterable[LayerSparsity]) -> dict[int | None, Sparsity]:
    """Number of the decoder layer -> its layers together, in order; what lies outside comes last, as None."""
    groups: dict[int | None, list[LayerSparsity]] = {}
    for layer in layers:
        groups.setdefault(layer.block, []).append(layer)
    ordered = sorted(groups, key=lambda block: (block is None, block or 0))
    return {block: summarise(groups[block]) for block in ordered}


def _mean(shares: Sequence[float]) -> float:
    return math.fsum(shares) / len(shares)
