"""Some rows of a tensor on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from untax.adapters.header import TensorInfo
from untax.errors import UntaxError

if TYPE_CHECKING:
    import torch


def read_rows(tensor: TensorInfo, rows: slice) -> torch.Tensor:
    """Consecutive rows of a floating tensor, in its own dtype.

    Read and not mapped: mapped pages count as the process's memory until something else needs the space.

    Args:
        tensor: of a safetensors file.
        rows: a slice of the first dimension, without a step; a scalar is one row.

    Raises:
        UntaxError: the file was cut off meanwhile.
        KeyError: the tensor is not floating.
    """
    import torch

    kind = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[tensor.dtype]
    count, *columns = tensor.shape or (1,)
    size = (tensor.stop - tensor.start) // max(1, count)
    start, stop, _ = rows.indices(count)
    if stop <= start:
        return torch.empty(0, *columns, dtype=kind)
    buffer = bytearray(size * (stop - start))
    with tensor.file.open("rb") as handle:
        handle.seek(tensor.start + size * start)
        if handle.readinto(buffer) != len(buffer):
            raise UntaxError(
                "The file was cut off while it was read.", where=tensor.file, fix="Copy or download the model again."
            )
    return torch.frombuffer(buffer, dtype=kind).reshape(-1, *columns)
