"""The K deltas of one tensor, read block by block."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from untax.adapters.blocks import row_blocks
from untax.adapters.header import TensorInfo
from untax.adapters.rows import read_rows

if TYPE_CHECKING:
    import torch

    from untax.adapters.changes import Change
    from untax.adapters.stored import StoredAdapter

    Rows = Callable[[slice], torch.Tensor]
    Opened = Callable[[slice, torch.Tensor | None], torch.Tensor]


class TensorDeltas:
    """See ``untax.merge.method.Deltas``; what an adapter has for the tensor is loaded when it is needed.

    Attributes:
        tensor: its name in the base's checkpoint.
        shape: as rows and columns.
        changes: one for each model, None where a model leaves the tensor as it is.
        base: called with rows, it returns those of the base in fp32, shape (n, columns).
        opened: gives an opened change (see ``opener``).
    """

    def __init__(
        self,
        tensor: str,
        shape: tuple[int, ...],
        changes: Sequence[Change | None],
        base: Rows,
        opened: Callable[[Any], Opened],
    ):
        self.tensor, self.shape = tensor, table_shape(shape)
        self.changes, self.base, self.opened = tuple(changes), base, opened

    @property
    def models(self) -> int:
        """K."""
        return len(self.changes)

    def has(self, model: int) -> bool:
        """Whether the model changes this tensor."""
        return self.changes[model] is not None

    def blocks(self) -> Iterator[slice]:
        """Always the same slices: what is computed does not depend on how the work is shared out."""
        yield from row_blocks(*self.shape)

    def rows(self, model: int, rows: slice, base: torch.Tensor | None = None) -> torch.Tensor:
        """Rows of one delta, fp32, fresh.

        Args:
            model: its index.
            rows: consecutive ones.
            base: the same rows of the base, if they are at hand.
        """
        import torch

        change = self.changes[model]
        if change is None:
            return torch.zeros(len(range(*rows.indices(self.shape[0]))), self.shape[1])
        if change.needs_base and base is None:
            base = self.base(rows)
        return self.opened(change)(rows, base)

    def stacked(self, rows: slice, base: torch.Tensor) -> torch.Tensor:
        """The same rows of all K deltas, shape (K, n, columns); this thread's next call overwrites them."""
        found = _scratch(self.models, *base.shape)
        for model, delta in enumerate(found):
            delta.copy_(self.rows(model, rows, base)) if self.has(model) else delta.zero_()
        return found


def adapters_of(changes: Sequence[Change | None]) -> tuple[StoredAdapter | None, ...]:
    """Whose each change is; None also for tensors that are stored whole, which do not say."""
    return tuple(getattr(change, "adapter", None) for change in changes)


def opener(limit: int) -> Callable[[Any], Opened]:
    """What opens changes and keeps at most ``limit`` of them open: those that were used last."""
    return functools.lru_cache(limit)(lambda change: change.open())


_threads = threading.local()


def _scratch(*shape: int) -> torch.Tensor:
    """The same memory for every block: to have it from the system anew costs as much as the product itself."""
    import torch

    needed = math.prod(shape)
    if getattr(_threads, "memory", None) is None or _threads.memory.numel() < needed:
        _threads.memory = torch.empty(needed)
    memory: torch.Tensor = _threads.memory
    return memory[:needed].view(shape)


def table_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(first dimension, product of all others)."""
    return (shape[0] if shape else 1), math.prod(shape[1:])


def stored_rows(info: TensorInfo) -> Rows:
    """What reads rows of a tensor on disk in fp32, as a table."""
    columns = table_shape(info.shape)[1]
    return lambda rows: read_rows(info, rows).float().reshape(-1, columns)
