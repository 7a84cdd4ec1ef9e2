"""Random masks that depend on nothing but seed, tensor, model and place: on no order, thread or block."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from untax.adapters.blocks import row_blocks

if TYPE_CHECKING:
    import torch


def keep_mask(seed: int, tensor: str, model: int, shape: tuple[int, int], rows: slice, density: float) -> torch.Tensor:
    """Which elements stay, each with probability ``density`` and independently of all others.

    Args:
        seed: of the merge.
        tensor: the tensor's name.
        model: index of the model.
        shape: of the whole tensor, as rows and columns.
        rows: the rows wanted.
        density: between 0 and 1, taken to 32 binary digits.

    Returns:
        Shape (n, columns), bool.
    """
    import numpy
    import torch

    start, stop, _ = rows.indices(shape[0])
    kept = numpy.empty((stop - start, shape[1]), dtype=numpy.bool_)
    for block in row_blocks(*shape):
        first, last = max(block.start, start), min(block.stop, stop)
        if first < last:
            drawn = _drawn(seed, tensor, model, block.start, (block.stop - block.start) * shape[1])
            table = drawn.reshape(-1, shape[1])[first - block.start : last - block.start]
            numpy.less(table, numpy.uint64(round(density * 2**32)), out=kept[first - start : last - start])
    return torch.from_numpy(kept)


def _drawn(seed: int, tensor: str, model: int, row: int, count: int):  # type: ignore[no-untyped-def]
    """``count`` uniform numbers of 32 bits."""
    import numpy

    key = hashlib.sha256(f"{seed} {model} {row} {tensor}".encode()).digest()
    generator = numpy.random.SFC64(numpy.frombuffer(key, dtype="<u4").tolist())
    return generator.random_raw(-(-count // 2)).astype("<u8", copy=False).view("<u4")[:count]
