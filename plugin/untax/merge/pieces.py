"""A piece of a tensor: some MB of the base's bytes in, as many of the output's out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from untax.adapters.blocks import row_blocks
from untax.errors import UntaxError
from untax.merge.deltas import table_shape
from untax.merge.shards import WIDTHS, OutputTensor
from untax.merge.tensor_job import TensorJob

if TYPE_CHECKING:
    import torch

_ELEMENTS = 1 << 20
_BYTES = 1 << 22
# All ones in the exponent: the smallest such number without its sign is infinity, all above are NaN.
_INFINITIES = {"F64": 0x7FF0 << 48, "F32": 0x7F80 << 16, "F16": 0x7C00, "BF16": 0x7F80}


@dataclass(frozen=True)
class Piece:
    """Some rows of a tensor.

    Attributes:
        rows: which ones; None for bytes that are copied.
        start: offset of the first byte in the base's file.
        stop: offset after the last.
    """

    rows: slice | None
    start: int
    stop: int


def pieces(tensor: OutputTensor, *, whole_rows: bool) -> Iterator[Piece]:
    """What covers a tensor in order: blocks of rows where there is something to compute, else bytes."""
    source = tensor.source
    if not whole_rows and tensor.dtype == source.dtype:
        # An even number of elements, so that every piece can be looked at as numbers.
        for start in range(source.start, source.stop, _BYTES):
            yield Piece(None, start, min(start + _BYTES, source.stop))
        return
    rows, columns = table_shape(source.shape)
    width = columns * WIDTHS[source.dtype]
    for group in _groups(rows, columns):
        yield Piece(group, source.start + group.start * width, source.start + group.stop * width)


def _groups(rows: int, columns: int) -> Iterator[slice]:
    """Consecutive blocks, together of a piece's elements at most, or one block."""
    first = last = 0
    for block in row_blocks(rows, columns):
        if last > first and (block.stop - first) * columns > _ELEMENTS:
            yield slice(first, last)
            first = last
        last = block.stop
    if last > first:
        yield slice(first, last)


def copied(tensor: OutputTensor, piece: Piece, content: bytearray) -> list[memoryview]:
    """The same bytes, or the same numbers in another dtype.

    Raises:
        UntaxError: NaN or infinity among them, or after rounding.
    """
    if tensor.source.dtype not in _INFINITIES:
        return [memoryview(content)]
    values = _values(content, tensor.source.dtype)
    _refuse_nonfinite(values, tensor, tensor.source.dtype)
    if tensor.dtype != tensor.source.dtype:
        values = values.to(_torch_dtype(tensor.dtype))
        _refuse_nonfinite(values, tensor, tensor.dtype)
    return [_bytes(values)]


def merged(tensor: OutputTensor, piece: Piece, content: bytearray, job: TensorJob, statistics: Any) -> list[memoryview]:
    """The merged rows for each scale, rounded once.

    Raises:
        UntaxError: NaN or infinity in the base, in a delta, or after rounding.
    """
    import torch

    assert piece.rows is not None
    columns = job.deltas.shape[1]
    base = _values(content, tensor.source.dtype).view(-1, columns)
    outputs = [torch.empty(base.shape, dtype=_torch_dtype(tensor.dtype)) for _ in job.scales]
    for block in job.deltas.blocks():
        if piece.rows.start <= block.start < piece.rows.stop:
            own = slice(block.start - piece.rows.start, block.stop - piece.rows.start)
            for output, rows in zip(outputs, job.merged(statistics, block, base[own].float()), strict=True):
                output[own] = rows
    for output in outputs:
        if _has_nonfinite(output, tensor.dtype):
            _refuse_nonfinite(base, tensor, tensor.source.dtype)
            _refuse(tensor, job)
    return [_bytes(output) for output in outputs]


def _values(content: bytearray, dtype: str) -> torch.Tensor:
    import torch

    return torch.frombuffer(content, dtype=_torch_dtype(dtype)) if content else torch.empty(0)


def _torch_dtype(dtype: str) -> torch.dtype:
    import torch

    return {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]


def _bytes(values: torch.Tensor) -> memoryview:
    import torch

    return memoryview(values.flatten().view(torch.uint8).numpy()) if values.numel() else memoryview(b"")


def _has_nonfinite(values: torch.Tensor, dtype: str) -> bool:
    import torch

    width = {8: torch.int64, 4: torch.int32, 2: torch.int16}[WIDTHS[dtype]]
    magnitudes = values.flatten().view(width) & torch.iinfo(width).max
    return bool(magnitudes.numel()) and int(magnitudes.max()) >= _INFINITIES[dtype]


def _refuse_nonfinite(values: torch.Tensor, tensor: OutputTensor, dtype: str) -> None:
    if _has_nonfinite(values, dtype):
        stored = dtype == tensor.source.dtype
        raise UntaxError(
            f"The base has NaN or infinity in {tensor.name}."
            if stored
            else f"{tensor.name} of the base overflows {dtype}.",
            where=tensor.source.file,
            fix="Copy or download the base again." if stored else "Set out_dtype: bfloat16 or float32.",
        )


def _refuse(tensor: OutputTensor, job: TensorJob) -> None:
    """Say whether a delta is not finite, or only its sum with the base in the output's dtype."""
    for model in range(job.deltas.models):
        for rows in job.deltas.blocks():
            if not math.isfinite(float(job.deltas.rows(model, rows).abs().sum())):
                raise UntaxError(
                    f"The delta of model {model + 1} has NaN or infinity in {tensor.name}.",
                    where=tensor.source.file,
                    fix="Its training diverged, or a scale or weight is far too large.",
                )
    raise UntaxError(
        f"The merged {tensor.name} overflows {tensor.dtype} or is not a number.",
        where=tensor.source.file,
        fix="Set out_dtype: bfloat16 or float32, or smaller weights.",
    )
