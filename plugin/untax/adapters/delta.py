"""The delta of one tensor in training, whatever carries it: LoRA factors, or the parameter itself.

Penalties see no more of it than blocks of rows; the chain rule back to what is trained is here, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from untax.adapters.blocks import product_blocks, row_blocks
from untax.adapters.sharding import like, over_ranks, own_rows, whole

if TYPE_CHECKING:
    import torch

    Gradient = Callable[[slice, torch.Tensor], torch.Tensor]
    Reference = Callable[[slice], torch.Tensor]


class LiveDelta(Protocol):
    """The change of one tensor of the base, as the model in training has it now."""

    @property
    def name(self) -> str:
        """The tensor's name in the base's checkpoint."""
        ...

    @property
    def transposed(self) -> bool:
        """Whether the delta lies the other way round than the base's tensor (an adapted embedding)."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns; a vector is one column."""
        ...

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """(rows, the delta's rows in fp32, without a graph): those of this rank, in order. They may be overwritten."""
        ...

    def add_gradient(self, of: Gradient, weight: float) -> None:
        """Add ``weight`` times a gradient with respect to the delta to what is trained, in place of ``.grad``.

        Args:
            of: called as ``of(rows, block)``, it returns the gradient with respect to this block, in the block's shape;
                it may overwrite the block.
            weight: lambda, times the loss scale if the gradients carry one.
        """
        ...

    def add_itself(self, weight: float) -> None:
        """``add_gradient`` with the delta as the gradient, in whatever way is cheapest."""
        ...

    def over_ranks(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks of what each took from its own rows."""
        ...


@dataclass(frozen=True)
class LowRankDelta:
    """s * B @ A of one LoRA layer.

    Attributes:
        name: the base's tensor.
        a: shape (r, in).
        b: shape (out, r).
        scale: s = alpha / r, or alpha / sqrt(r) with rsLoRA.
        transposed: whether the base's tensor has shape (in, out).
    """

    name: str
    a: torch.Tensor
    b: torch.Tensor
    scale: float
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.b.shape[0], self.a.shape[1]

    def delta(self) -> torch.Tensor:
        """s * B @ A whole, in fp32 without a graph, shape (out, in)."""
        return (whole(self.b).float() @ whole(self.a).float()).mul_(self.scale)

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Every rank computes the whole delta: its factors are small."""
        yield from product_blocks(whole(self.b), whole(self.a), self.scale)

    def add_gradient(self, of: Gradient, weight: float) -> None:
        """With G the gradient: weight * s * G @ A^T to B, and weight * s * B^T @ G to A.

        The extra memory is one block and the gradients of the two factors in fp32.
        """
        import torch

        a, b = whole(self.a).float(), whole(self.b).float()
        of_a, of_b = torch.zeros_like(a), torch.empty_like(b)
        for rows, block in product_blocks(b, a, self.scale):
            gradient = of(rows, block)
            torch.mm(gradient, a.T, out=of_b[rows])
            of_a.addmm_(b[rows].T, gradient)
            # Otherwise the next block would be made beside this one, elsewhere, and both would leave the cache.
            del block, gradient
        _add(self.b, of_b, weight * self.scale)
        _add(self.a, of_a, weight * self.scale)

    def add_itself(self, weight: float) -> None:
        """weight * s^2 * B @ (A @ A^T) to B, and weight * s^2 * (B^T @ B) @ A to A: only r x r matrices between."""
        a, b = whole(self.a).float(), whole(self.b).float()
        _add(self.b, b @ (a @ a.T), weight * self.scale**2)
        _add(self.a, (b.T @ b) @ a, weight * self.scale**2)

    def over_ranks(self, value: torch.Tensor) -> torch.Tensor:
        """The value itself: every rank has the whole delta."""
        return value


@dataclass(frozen=True)
class ParameterDelta:
    """theta - theta_pre of a parameter that is trained itself.

    Attributes:
        name: the base's tensor.
        parameter: theta, of any shape; each rank works on its own rows.
        reference: called with a slice of rows, it returns those of theta_pre; None stands for zero.
        transposed: never.
    """

    name: str
    parameter: torch.Tensor
    reference: Reference | None = None
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """(first dimension, all others)."""
        return _table_shape(self.parameter)

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """The rows that this rank has."""
        import torch

        local, first = own_rows(self.parameter)
        table = local.reshape(_table_shape(local))
        for rows in row_blocks(*table.shape, on_gpu=table.is_cuda):
            here = slice(first + rows.start, first + rows.stop)
            block = table[rows].to(torch.float32, copy=True)
            if self.reference is not None:
                block -= self.reference(here).to(block.device).reshape(block.shape)
            yield here, block

    def add_gradient(self, of: Gradient, weight: float) -> None:
        """The gradient itself, block by block."""
        import torch

        if not self.parameter.requires_grad:
            return
        if self.parameter.grad is None:
            self.parameter.grad = torch.zeros_like(self.parameter)
        local, first = own_rows(self.parameter.grad)
        table = local.view(_table_shape(local))
        for rows, block in self.blocks():
            table[rows.start - first : rows.stop - first].add_(of(rows, block), alpha=weight)

    def add_itself(self, weight: float) -> None:
        """weight * (theta - theta_pre)."""
        self.add_gradient(lambda _, block: block, weight)

    def over_ranks(self, value: torch.Tensor) -> torch.Tensor:
        """Summed over those that share the parameter."""
        return over_ranks(value.to(own_rows(self.parameter)[0].device), self.parameter)


def _table_shape(tensor: torch.Tensor) -> tuple[int, int]:
    """(first dimension, all others); of more ranks than rows, some have none."""
    return tensor.shape[0] if tensor.ndim else 1, math.prod(tensor.shape[1:])


def _add(parameter: torch.Tensor, direction: torch.Tensor, weight: float) -> None:
    if not parameter.requires_grad:
        return
    own, _ = own_rows(like(direction, parameter))
    if parameter.grad is None:
        import torch

        parameter.grad = torch.zeros_like(parameter)
    # In place and mixed: a bf16 gradient takes the fp32 product and is rounded once.
    own_rows(parameter.grad)[0].add_(own, alpha=weight)
