"""The header of a safetensors file, without torch: names, dtypes, shapes, and whether the file is whole."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from untax.errors import UntaxError

# How many bytes one element takes, and the bits that are all ones in NaN and infinity.
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_EXPONENTS = {"F64": 0x7FF0000000000000, "F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
_CHUNK = 1 << 24


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a safetensors file.

    Attributes:
        file: the file it lies in.
        dtype: as safetensors spells it: ``F32``, ``BF16``, ...
        shape: its shape.
        start: offset of its first byte in the file.
        stop: offset after its last byte.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name.

    Raises:
        UntaxError: the file is missing, is no safetensors file, or is cut off.
    """
    try:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            size = path.stat().st_size
            if not 2 <= length <= size - 8:
                raise _broken(path)
            entries = json.loads(handle.read(length))
        tensors = {name: _info(path, 8 + length, entry) for name, entry in entries.items() if name != "__metadata__"}
    except OSError as error:
        raise UntaxError(f"The file cannot be read: {error.strerror}.", where=path, fix="Check the path.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path) from error
    # One tensor after the other from the first byte to the last: no overlap, no hole, nothing beyond the end.
    spans = [(0, 8 + length), *sorted((tensor.start, tensor.stop) for tensor in tensors.values()), (size, size)]
    if any(now[1] != then[0] for now, then in itertools.pairwise(spans)):
        raise _broken(path)
    return tensors


def make_header(tensors: Iterable[tuple[str, str, Sequence[int], int]]) -> bytes:
    """What a safetensors file begins with, padded so that the data are aligned to 8 bytes.

    Args:
        tensors: (name, dtype, shape, bytes) of each, in the order in which they follow.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, dtype, shape, size in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _info(path: Path, data: int, entry: dict[str, Any]) -> TensorInfo:
    start, stop = entry["data_offsets"]
    tensor = TensorInfo(path, str(entry["dtype"]), tuple(entry["shape"]), data + start, data + stop)
    if not all(isinstance(size, int) and size >= 0 for size in (*tensor.shape, tensor.start, stop - start)):
        raise ValueError("an offset or a size that is none")
    width = _WIDTHS.get(tensor.dtype)
    if width is not None and tensor.elements * width != stop - start:
        raise ValueError("a tensor's size is not its shape's")
    return tensor


def _broken(path: Path) -> UntaxError:
    return UntaxError(
        "The file is cut off or is no safetensors file.", where=path, fix="Copy, download or train it again."
    )


def has_nonfinite(tensor: TensorInfo) -> bool:
    """Whether a floating-point tensor holds NaN or infinity; read in chunks, False for other dtypes."""
    import numpy

    mask = _EXPONENTS.get(tensor.dtype)
    if mask is None or tensor.start == tensor.stop:
        return False
    width = _WIDTHS[tensor.dtype]
    bits = numpy.memmap(tensor.file, dtype=f"<u{width}", mode="r", offset=tensor.start, shape=(tensor.elements,))
    wanted = bits.dtype.type(mask)
    return any(
        bool(((bits[start : start + _CHUNK] & wanted) == wanted).any()) for start in range(0, tensor.elements, _CHUNK)
    )
