"""Deltas in memory, and a merge of them as the engines do it: for methods that read statistics of the models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from untax.merge.method import Block, Job, Method


@dataclass(frozen=True)
class InMemory:
    """See ``untax.merge.method.Deltas``; a delta may be None."""

    tensor: str
    deltas: tuple[Any, ...]
    step: int = 3

    @property
    def shape(self) -> tuple[int, int]:
        rows, *columns = next(delta for delta in self.deltas if delta is not None).shape
        return rows, columns[0] if columns else 1

    @property
    def models(self) -> int:
        return len(self.deltas)

    def has(self, model: int) -> bool:
        return self.deltas[model] is not None

    def rows(self, model: int, rows: slice) -> Any:
        import torch

        if not self.has(model):
            return torch.zeros(self.shape)[rows]
        return self.deltas[model].reshape(self.shape)[rows].float().clone()

    def blocks(self) -> Iterator[slice]:
        for start in range(0, self.shape[0], self.step):
            yield slice(start, min(start + self.step, self.shape[0]))


def merged(method: Method, deltas: InMemory, **values: Any) -> Any:
    """The merged delta, block by block."""
    import torch

    values = {**{one.name: _default(one, deltas.models) for one in method.parameters}, **values}
    if method.check is not None:
        method.check([Job(deltas, values)])
    whole = None if method.whole is None else method.whole(iter([Job(deltas, values)]))
    statistics = None if method.statistics is None else method.statistics(Job(deltas, values, whole=whole))
    parts = []
    for rows in deltas.blocks():
        stacked = torch.stack([deltas.rows(model, rows) for model in range(deltas.models)])
        parts.append(method.merge(Block(stacked, deltas.tensor, rows, deltas.shape, values, statistics=statistics)))
    found = torch.cat(parts)
    assert found.dtype == torch.float32
    return found


def _default(parameter: Any, models: int) -> Any:
    return (parameter.default,) * models if parameter.per_model else parameter.default


def save(path: Path, tensors: dict[str, Any], **metadata: str) -> str:
    """A safetensors file, and its path as a parameter has it."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    return str(path)
