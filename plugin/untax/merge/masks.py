"""Random masks that depend on nothing but seed, tensor, model and place: on no order, thread or block."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from untax.adapters.blocks import row_blocks

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True)
class KeepMask:
    """Which elements of a tensor stay; a bit for each, drawn once.

    Attributes:
        bits: by the first row of each block of rows.
        shape: of the tensor, as rows and columns.
    """

    bits: dict[int, NDArray[Any]]
    shape: tuple[int, int]

    def rows(self, rows: slice) -> torch.Tensor:
        """1 for what stays and 0 for what does not, fp32, shape (n, columns)."""
        import torch

        start, stop, _ = rows.indices(self.shape[0])
        kept = torch.empty(stop - start, self.shape[1])
        for block in row_blocks(*self.shape):
            first, last = max(block.start, start), min(block.stop, stop)
            if first < last:
                own = self._unpacked(block)[first - block.start : last - block.start]
                kept[first - start : last - start] = torch.from_numpy(own)
        return kept

    def _unpacked(self, block: slice) -> NDArray[Any]:
        import numpy

        count = (block.stop - block.start) * self.shape[1]
        return numpy.unpackbits(self.bits[block.start], count=count).reshape(-1, self.shape[1])


def keep_mask(seed: int, tensor: str, model: int, shape: tuple[int, int], density: float) -> KeepMask:
    """Draw which elements stay, each with probability ``density`` and independently of all others.

    Args:
        seed: of the merge.
        tensor: the tensor's name.
        model: index of the model.
        shape: of the tensor, as rows and columns.
        density: above 0 and at most 1, taken to 32 binary digits.
    """
    import numpy

    limit = round(density * 2**32)
    bits = {}
    for block in row_blocks(*shape):
        drawn = _drawn(seed, tensor, model, block.start, (block.stop - block.start) * shape[1])
        # A limit of 32 binary digits, or all stay: NumPy is slow with a larger integer.
        kept = drawn < numpy.uint32(limit) if limit < 2**32 else numpy.ones(len(drawn), dtype=numpy.bool_)
        bits[block.start] = numpy.packbits(kept)
    return KeepMask(bits, shape)


def _drawn(seed: int, tensor: str, model: int, row: int, count: int) -> NDArray[Any]:
    """``count`` uniform integers of 32 bits."""
    import numpy

    key = hashlib.sha256(f"{seed} {model} {row} {tensor}".encode()).digest()
    generator = numpy.random.SFC64(numpy.frombuffer(key, dtype="<u4").tolist())
    return generator.random_raw(-(-count // 2)).astype("<u8", copy=False).view("<u4")[:count]
