"""How much adapters of one base get in each other's way when they are merged, layer by layer.

Directions come from the factors alone: <s1*B1@A1, s2*B2@A2> = s1*s2 * sum((B1^T B2) * (A1 A2^T)). What depends on
single elements (signs, the largest ones) is counted block by block, for all adapters together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from untax.adapters.blocks import product_blocks
from untax.adapters.threshold import kth_largest
from untax.errors import UntaxError

if TYPE_CHECKING:
    import torch

TOP = 0.1
"""The share of a layer's elements that counts as its largest."""

Matrix = tuple[tuple[float, ...], ...]
"""Shape (K, K); zero where one of the two adapters lacks the layer."""


@dataclass(frozen=True)
class LayerInterference:
    """One layer of K adapters, in sums that add up over layers.

    Attributes:
        module: the layer's name in the base model.
        elements: how many elements its delta has.
        adapters: which adapters have it, by number from 0.
        inner: <D_i, D_j>.
        l1: sum of |D_i| for each adapter.
        conflict: sum of |D_i| + |D_j| over the elements at which the signs of the two differ.
        largest: how many elements are among the largest of both; on the diagonal, of the one: k of them, more if
            elements tie with the k-th, fewer if fewer are not zero.
        dropped: for each adapter the sum of |D_i| over the elements at which it has not the elected sign, that of
            sum of D_i, and + where this is 0: what electing signs drops (TIES, section 4, before any trimming).
    """

    module: str
    elements: int
    adapters: tuple[int, ...]
    inner: Matrix
    l1: tuple[float, ...]
    conflict: Matrix
    largest: Matrix
    dropped: tuple[float, ...]


@dataclass(frozen=True)
class Alone:
    """One adapter over the layers that it has.

    Attributes:
        layers: how many.
        elements: of its delta.
        norm: the Frobenius norm.
        l1: sum of |D|.
        dropped: the share of ``l1`` that electing signs among all adapters drops; None for a delta of zeros.
    """

    layers: int
    elements: int
    norm: float
    l1: float
    dropped: float | None

    @property
    def mean(self) -> float:
        """The mean of |D|."""
        return self.l1 / self.elements if self.elements else 0.0

    @property
    def rms(self) -> float:
        """The root mean square of D."""
        return self.norm / math.sqrt(self.elements) if self.elements else 0.0


@dataclass(frozen=True)
class Pair:
    """Two adapters over the layers that both have.

    Attributes:
        layers: how many.
        cosine: of the two deltas, seen as vectors; None when one is zero.
        conflict: share of the magnitude |D_i| + |D_j| at elements whose signs differ; None when both are zero.
        overlap: share of the largest elements of the one that are among the largest of the other; None likewise.
    """

    layers: int
    cosine: float | None
    conflict: float | None
    overlap: float | None


def pair(layers: Sequence[LayerInterference], one: int, other: int) -> Pair:
    """Two adapters, by number, over the layers that both have."""
    both = [layer for layer in layers if one in layer.adapters and other in layer.adapters]
    inner, first, second = (
        math.fsum(layer.inner[i][j] for layer in both) for i, j in ((one, other), (one, one), (other, other))
    )
    cosine = _share(inner, math.sqrt(first) * math.sqrt(second))
    shared = sum(layer.largest[one][other] for layer in both)
    # Both have k of them; where ties or zeros make it more or fewer, the mean of the two.
    largest = sum(layer.largest[one][one] + layer.largest[other][other] for layer in both) / 2
    return Pair(
        layers=len(both),
        # Rounding does not make two deltas more than parallel.
        cosine=None if cosine is None else max(-1.0, min(1.0, cosine)),
        conflict=_share(
            math.fsum(layer.conflict[one][other] for layer in both),
            math.fsum(layer.l1[one] + layer.l1[other] for layer in both),
        ),
        overlap=_share(shared, largest),
    )


def alone(layers: Sequence[LayerInterference], number: int) -> Alone:
    """One adapter, by number."""
    own = [layer for layer in layers if number in layer.adapters]
    l1 = math.fsum(layer.l1[number] for layer in own)
    return Alone(
        layers=len(own),
        elements=sum(layer.elements for layer in own),
        norm=math.sqrt(math.fsum(layer.inner[number][number] for layer in own)),
        l1=l1,
        dropped=_share(math.fsum(layer.dropped[number] for layer in own), l1),
    )


def dropped(layers: Sequence[LayerInterference]) -> float | None:
    """The share of the magnitude of all adapters together that electing signs drops."""
    lost = math.fsum(x for layer in layers for x in layer.dropped)
    return _share(lost, math.fsum(x for layer in layers for x in layer.l1))


def sum_norm(layers: Sequence[LayerInterference]) -> float:
    """The Frobenius norm of the sum of the K deltas; an adapter without a layer has zeros there."""
    return math.sqrt(max(0.0, math.fsum(value for layer in layers for row in layer.inner for value in row)))


def mean_norm(layers: Sequence[LayerInterference]) -> float | None:
    """The Frobenius norm of the plain mean of the K deltas, divided by the root mean square of their norms.

    1 if all are the same, 1 / sqrt(K) if they are orthogonal, 0 if they cancel. An adapter without a layer has zeros
    there.
    """
    count = len(layers[0].l1)
    own = math.fsum(layer.inner[i][i] for layer in layers for i in range(count))
    return _share(sum_norm(layers), math.sqrt(own * count))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


class Factors(NamedTuple):
    """One adapter's delta of a layer: scale * up @ down, up (rows, r), down (r, columns), of any floating dtype."""

    up: torch.Tensor
    down: torch.Tensor
    scale: float

    def blocks(self) -> Iterator[torch.Tensor]:
        """The delta's rows in order, some at a time, in fp32."""
        return (block for _, block in product_blocks(self.up, self.down, self.scale))


def measure_layer(
    module: str, factors: Mapping[int, Factors], count: int, top: float, *, where: object
) -> LayerInterference:
    """One layer of those adapters that have it.

    In memory are a block of rows of each delta, and some percent of one delta while its largest elements are found.

    Args:
        module: the layer's name.
        factors: by the adapter's number; the deltas' shapes are equal.
        count: K, of all adapters.
        top: the share of the elements that counts as the largest; at least one element does.
        where: the adapters, for the error.

    Raises:
        UntaxError: a product overflows.
    """
    import torch

    own = list(factors.values())
    elements = own[0].up.shape[0] * own[0].down.shape[1]
    # Of an adapter that is alone in the layer only the magnitude is needed.
    rank = max(1, round(top * elements))
    limits = [kth_largest(one.blocks, elements, rank, where=where) if len(own) > 1 else math.inf for one in own]
    sums = _Sums(limits)
    for blocks in zip(*(one.blocks() for one in own), strict=True):
        sums.add(torch.stack([block.flatten() for block in blocks]))
    if not bool(sums.l1.isfinite().all()):
        raise UntaxError(f"A delta of {module} is too large for float32.", where=where, fix="Train the adapter again.")
    # K x K from those that are there: each has a row of zeros but for its own place.
    places = torch.eye(count, dtype=torch.float64)[list(factors)]
    inner, conflict, largest = (
        (places.T @ found @ places).tolist() for found in (_inner(own), sums.conflict, sums.largest)
    )
    return LayerInterference(
        module=module,
        elements=elements,
        adapters=tuple(factors),
        inner=_matrix(inner),
        l1=tuple((sums.l1 @ places).tolist()),
        conflict=_matrix(conflict),
        largest=_matrix(largest),
        dropped=tuple((sums.dropped @ places).tolist()),
    )


def _inner(factors: Sequence[Factors]) -> torch.Tensor:
    """<D_i, D_j> in float64 from the factors, shape (K, K)."""
    import torch

    up = torch.cat([one.up.double() * one.scale for one in factors], dim=1)
    down = torch.cat([one.down.double() for one in factors])
    ranks = torch.tensor([one.down.shape[0] for one in factors])
    own = torch.eye(len(factors), dtype=torch.float64).repeat_interleave(ranks, dim=0)
    found = own.T @ ((up.T @ up) * (down @ down.T)) @ own
    return (found + found.T) / 2


class _Sums:
    """What depends on single elements, summed in double precision over blocks.

    Attributes:
        l1: sum of |D_i|, shape (K,).
        conflict: as in ``LayerInterference``, shape (K, K).
        largest: likewise.
        dropped: likewise, shape (K,).
    """

    def __init__(self, limits: Sequence[float]):
        import torch

        self._limits = limits
        self.l1 = torch.zeros(len(limits), dtype=torch.float64)
        self.conflict = torch.zeros((len(limits), len(limits)), dtype=torch.float64)
        self.largest = torch.zeros_like(self.conflict)
        self.dropped = torch.zeros_like(self.l1)

    def add(self, deltas: torch.Tensor) -> None:
        """Some elements of all K deltas, shape (K, n), fp32."""
        import torch

        size, sign = deltas.abs(), deltas.sign()
        self.l1 += size.sum(dim=1).double()
        # +0.0, not -0.0: a sum of nothing but negative zeros elects + as well.
        total = deltas.sum(dim=0).add_(0.0)
        other = torch.copysign(torch.ones_like(total), total).neg_()
        self.dropped += (deltas * other).relu_().sum(dim=1).double()
        # Of |D_i|: where the signs agree minus where they differ, and the sum of the two. The same products are added
        # in the same order where nothing differs, so that is exactly zero.
        net = deltas @ sign.T
        either = size @ sign.abs_().T
        differs = (either - net).double() / 2
        self.conflict += differs + differs.T
        self._count_largest(size)

    def _count_largest(self, size: torch.Tensor) -> None:
        import numpy

        # NumPy compares and counts several times faster than torch does. A zero is never among the largest.
        values = size.numpy()
        among = [(row >= limit) & (row > 0) for row, limit in zip(values, self._limits, strict=True)]
        for i, one in enumerate(among):
            for j in range(i + 1):
                both = int(numpy.count_nonzero(one & among[j]))
                self.largest[i, j] += both
                self.largest[j, i] += both if i != j else 0


def _matrix(rows: list[list[float]]) -> Matrix:
    return tuple(map(tuple, rows))
