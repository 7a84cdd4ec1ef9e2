"""Whether the weights that a training wrote are a result at all: finite, and not what it began with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from untax.adapters.header import TensorInfo, has_nonfinite, read_header

_FACTOR = re.compile(r"(.*)\.lora_(?:embedding_)?([AB])(?:\..*)?")
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
CHUNK_BYTES = 1 << 24


def measured(files: Iterable[Path]) -> dict[str, Any]:
    """``{"tensors", "deltas", "zero_deltas", "not_finite"}`` of the weights in safetensors files, tensor by tensor.

    ``deltas`` counts the layers with a pair of factors, ``zero_deltas`` those of them of which one factor is all zeros,
    and so B @ A is; ``not_finite`` names the first tensor with NaN or infinity, or is None.

    Raises:
        UntaxError: a file cannot be read or is cut off.
    """
    tensors = {name: tensor for file in files for name, tensor in read_header(file).items()}
    factors: dict[str, list[TensorInfo]] = {}
    for name, tensor in tensors.items():
        match = _FACTOR.fullmatch(name)
        if match:
            factors.setdefault(match[1], []).append(tensor)
    return {
        "tensors": len(tensors),
        "deltas": len(factors),
        "zero_deltas": sum(any(map(is_zero, pair)) for pair in factors.values()),
        "not_finite": next((name for name, tensor in tensors.items() if has_nonfinite(tensor)), None),
    }


def is_zero(tensor: TensorInfo) -> bool:
    """Whether every element is 0 or -0; it is read up to the first chunk with one that is not."""
    import numpy

    width = _FLOATS.get(tensor.dtype, 1)
    # All bits but the sign.
    mask = (1 << (8 * width - 1)) - 1 if tensor.dtype in _FLOATS else 0xFF
    with tensor.file.open("rb") as handle:
        handle.seek(tensor.start)
        for start in range(tensor.start, tensor.stop, CHUNK_BYTES):
            elements = numpy.frombuffer(handle.read(min(CHUNK_BYTES, tensor.stop - start)), dtype=f"<u{width}")
            if (elements & elements.dtype.type(mask)).any():
                return False
    return True
