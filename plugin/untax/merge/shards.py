"""The files of the output: which tensor lies where, known before the first byte is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from untax.adapters.base import INDEX_NAME, WEIGHTS_NAME, StoredModel
from untax.adapters.header import TensorInfo, make_header

WIDTHS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Names in YAML and config.json -> names in safetensors."""


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the output.

    Attributes:
        name: its name.
        source: the base's.
        dtype: of the output, as safetensors spells it.
    """

    name: str
    source: TensorInfo
    dtype: str

    @property
    def size(self) -> int:
        """Bytes in the output."""
        if self.dtype == self.source.dtype:
            return self.source.stop - self.source.start
        return WIDTHS[self.dtype] * self.source.elements


@dataclass(frozen=True)
class Shard:
    """One file of the output.

    Attributes:
        name: its file name.
        tensors: in the order in which they are written.
    """

    name: str
    tensors: tuple[OutputTensor, ...]

    def header(self) -> bytes:
        """What the file begins with."""
        return make_header((one.name, one.dtype, one.source.shape, one.size) for one in self.tensors)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header()) + sum(tensor.size for tensor in self.tensors)


def lay_out(base: StoredModel, dtype: str | None, limit: int | None) -> list[Shard]:
    """The output's files, with the base's tensors in the base's order.

    Args:
        base: the model whose tensors they are.
        dtype: of all floating tensors, as safetensors spells it; None: each as the base has it.
        limit: bytes of a file at most (a larger tensor has one of its own); None: the base's own files.
    """
    found = sorted(base.tensors.items(), key=lambda item: (item[1].file.name, item[1].start))
    tensors = [OutputTensor(name, info, _dtype(info, dtype)) for name, info in found]
    if limit is not None:
        return _split(tensors, limit)
    files = list(dict.fromkeys(tensor.source.file.name for tensor in tensors))
    return [Shard(name, tuple(one for one in tensors if one.source.file.name == name)) for name in files]


def _dtype(info: TensorInfo, wanted: str | None) -> str:
    return wanted if wanted is not None and info.dtype in WIDTHS else info.dtype


def _split(tensors: Sequence[OutputTensor], limit: int) -> list[Shard]:
    groups: list[list[OutputTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.size > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.size
    if len(groups) == 1:
        return [Shard(WEIGHTS_NAME, tuple(groups[0]))]
    stem, suffix = WEIGHTS_NAME.split(".")
    return [
        Shard(f"{stem}-{number:05d}-of-{len(groups):05d}.{suffix}", tuple(group))
        for number, group in enumerate(groups, start=1)
    ]


def write_index(shards: Sequence[Shard], folder: Path) -> None:
    """Write the index of several files; a single ``model.safetensors`` has none."""
    if [shard.name for shard in shards] == [WEIGHTS_NAME]:
        return
    total = sum(tensor.size for shard in shards for tensor in shard.tensors)
    places = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def output_size(shards: Sequence[Shard]) -> int:
    """Bytes of all files."""
    return sum(shard.size for shard in shards)
