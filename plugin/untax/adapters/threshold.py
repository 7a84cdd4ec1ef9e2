"""The k-th largest magnitude of a delta that is never in memory as a whole.

A strided sample brackets it; one pass over all elements counts what lies above the bracket and collects the percent or
so within it, among which the exact one is. If the bracket misses, the magnitude is found digit by digit: as an integer,
the bits of a float without its sign are in the order of its value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from untax.adapters.blocks import CPU_ELEMENTS
from untax.errors import UntaxError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Blocks = Callable[[], Iterable[torch.Tensor]]

SAMPLE = 1 << 17
"""Elements of the sample of a large delta: the bracket then has one percent of the delta."""
SHARE = 32
"""A sample is at most this part of a smaller delta."""
DEVIATIONS = 5.0
"""Half the bracket's width, in standard deviations of a quantile of a random sample."""
# More elements within the bracket than this part of a delta are not collected.
_COLLECTED = 16
_LOW_BITS = 16


def kth_largest(blocks: Blocks, count: int, k: int, *, where: object = "the delta") -> float:
    """The k-th largest magnitude, exactly; equal ones count one by one.

    Args:
        blocks: yields all elements in fp32 on the CPU, in parts of any shape; at each call anew, and the same every
            time. It is called twice, or more often if the bracket misses. No block is kept or changed.
        count: how many elements there are.
        k: 1 for the largest; from ``count`` on, the smallest is returned.
        where: what the elements are, for the error.

    Returns:
        The magnitude of one of the elements. At most some percent of them are in memory, and a block.

    Raises:
        UntaxError: there is a NaN.
        ValueError: k is below 1, or the blocks do not have ``count`` elements.
    """
    import numpy

    if k < 1 or count < 1:
        raise ValueError(f"no element is the {k}-th largest of {count}")

    def magnitudes() -> Iterator[Array]:
        return _magnitudes(blocks, count, where)

    rank = min(k, count)
    if count <= CPU_ELEMENTS:
        return _among(numpy.concatenate(list(magnitudes())), rank)
    low, high = _bracket(_sample(magnitudes(), count), rank / count)
    found = _within(magnitudes, count, rank, low, high)
    return _by_digits(magnitudes, rank) if found is None else found


def _magnitudes(blocks: Blocks, count: int, where: object) -> Iterator[Array]:
    """The magnitudes of each block, flat."""
    seen = 0
    for block in blocks():
        size = block.detach().float().abs().flatten()
        # Magnitudes may add up to infinity, but to NaN only if there is one.
        if math.isnan(float(size.sum())):
            raise UntaxError(
                "There is a NaN among the elements, which have no order then.",
                where=where,
                fix="Its training diverged, or a file is damaged: train or copy it again.",
            )
        seen += size.numel()
        yield size.numpy()
    if seen != count:
        raise ValueError(f"the blocks have {seen} elements, not {count}")


def _among(values: Array, rank: int) -> float:
    import numpy

    place = len(values) - rank
    return float(numpy.partition(values, place)[place])


def _sample(magnitudes: Iterator[Array], count: int) -> Array:
    """Every so manieth element, ascending. The stride is a prime, so that no few columns of a matrix are preferred."""
    import numpy

    stride = _prime(max(SHARE, count // SAMPLE))
    parts, skip = [], 0
    for values in magnitudes:
        parts.append(values[skip::stride].copy())
        skip = (skip - len(values)) % stride
    return numpy.sort(numpy.concatenate(parts))


def _prime(least: int) -> int:
    return next(n for n in range(least, 2 * least + 2) if all(n % divisor for divisor in range(2, math.isqrt(n) + 1)))


def _bracket(sample: Array, share: float) -> tuple[float, float]:
    """Bounds of the magnitude that ``share`` of the elements reach."""
    size = len(sample)
    place = (1 - share) * size
    margin = DEVIATIONS * math.sqrt(size * share * (1 - share)) + 2
    low, high = math.floor(place - margin), math.ceil(place + margin)
    # Below zero there is nothing, and above infinity neither.
    return (float(sample[low]) if low >= 0 else -1.0), (float(sample[high]) if high < size else math.inf)


def _within(magnitudes: Callable[[], Iterator[Array]], count: int, rank: int, low: float, high: float) -> float | None:
    """The magnitude of that rank if it lies between the bounds or is one of them; else None."""
    import numpy

    below_high = above_low = collected = 0
    inside: list[Array] = []
    for values in magnitudes():
        # NumPy compares and counts several times faster than torch does.
        under, over = values < high, values > low
        below_high += int(numpy.count_nonzero(under))
        above_low += int(numpy.count_nonzero(over))
        inside.append(values[numpy.flatnonzero(numpy.logical_and(under, over, out=under))])
        collected += len(inside[-1])
        if collected > CPU_ELEMENTS + count // _COLLECTED:
            return None
    reach_high = count - below_high
    if reach_high < rank <= above_low and low < high:
        return _among(numpy.concatenate(inside), rank - reach_high)
    return _at_a_bound(magnitudes, count, rank, low, high)


def _at_a_bound(
    magnitudes: Callable[[], Iterator[Array]], count: int, rank: int, low: float, high: float
) -> float | None:
    """One of the bounds, if so many elements equal it: a sparse delta has millions of zeros."""
    import numpy

    above = below = above_low = 0
    for values in magnitudes():
        above += int(numpy.count_nonzero(values > high))
        above_low += int(numpy.count_nonzero(values > low))
        below += int(numpy.count_nonzero(values < low))
    if above_low < rank <= count - below:
        return low
    return high if above < rank <= above_low else None


def _by_digits(magnitudes: Callable[[], Iterator[Array]], rank: int) -> float:
    """The magnitude of that rank by its bits: counts by the upper half find that, then counts by the lower half."""
    import numpy

    upper = numpy.zeros(1 << (31 - _LOW_BITS), dtype=numpy.int64)
    for values in magnitudes():
        upper += numpy.bincount(values.view(numpy.int32) >> _LOW_BITS, minlength=len(upper))
    first, rank = _digit(upper, rank)
    lower = numpy.zeros(1 << _LOW_BITS, dtype=numpy.int64)
    for values in magnitudes():
        bits = values.view(numpy.int32)
        own = bits[numpy.flatnonzero(bits >> _LOW_BITS == first)]
        lower += numpy.bincount(own & (len(lower) - 1), minlength=len(lower))
    second, _ = _digit(lower, rank)
    return float(numpy.array([first << _LOW_BITS | second], dtype=numpy.int32).view(numpy.float32)[0])


def _digit(counts: Array, rank: int) -> tuple[int, int]:
    """The digit of the element of that rank, counted from the highest digit down, and its rank among those with it."""
    import numpy

    reaching = numpy.cumsum(counts[::-1])
    place = int(numpy.searchsorted(reaching, rank))
    return len(counts) - 1 - place, rank - (int(reaching[place - 1]) if place else 0)
