"""A safetensors file whose bytes depend on nothing but what is in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from untax.files import new_file

if TYPE_CHECKING:
    import torch

ALIGNMENT = 8


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors as fp32, in the order of their names, whole or not at all.

    safetensors' own writer orders metadata anew in each process, and so the bytes would differ each time. The format is
    a header's length (8 bytes, little endian), the header as JSON, and the tensors' bytes.

    Raises:
        UntaxError: the disk is full, or the folder cannot be written to.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    stop = 0
    for name in sorted(tensors):
        start, stop = stop, stop + 4 * tensors[name].numel()
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [start, stop]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with new_file(path) as part, part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(tensors):
            file.write(tensors[name].detach().float().cpu().contiguous().numpy().astype("<f4", copy=False).data)
