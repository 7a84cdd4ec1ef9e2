"""Walking over a delta by blocks of rows, so that a whole one never lies in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Elements of one block: what stays in a core's cache (1 MB of fp32), and in a GPU's (64 MB, enough to keep it busy).
CPU_ELEMENTS = 1 << 18
GPU_ELEMENTS = 1 << 24


def row_blocks(rows: int, columns: int, *, on_gpu: bool = False) -> Iterator[slice]:
    """Slices that cover ``range(rows)`` in order, each of at most a block's elements, or of one row.

    >>> list(row_blocks(5, 1 << 17))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, (GPU_ELEMENTS if on_gpu else CPU_ELEMENTS) // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def product_blocks(b: torch.Tensor, a: torch.Tensor, scale: float) -> Iterator[tuple[slice, torch.Tensor]]:
    """(rows, those rows of ``scale * b @ a`` in fp32), without a graph.

    Args:
        b: shape (out, r), any floating dtype.
        a: shape (r, in), any floating dtype.
        scale: s of the adapter.
    """
    # The scale goes into the small factor, not over every block.
    up, down = b.detach().float() * scale, a.detach().float()
    for rows in row_blocks(up.shape[0], down.shape[1], on_gpu=down.is_cuda):
        yield rows, up[rows] @ down
