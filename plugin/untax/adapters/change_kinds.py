"""The ways in which an adapter changes a tensor: low rank, DoRA, a shifted bias, a replaced tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from untax.adapters.header import TensorInfo
from untax.adapters.rows import read_rows
from untax.adapters.stored import StoredAdapter, StoredLayer

if TYPE_CHECKING:
    import torch

    Rows = Callable[[slice, torch.Tensor | None], torch.Tensor]


class Change(Protocol):
    """How an adapter changes one tensor of its base, seen as a matrix: (first dimension, all others), a vector (n, 1).

    Attributes:
        tensor: the tensor's name in the base's checkpoint.
        shape: the tensor's shape.
        needs_base: whether the delta depends on the base's values.
    """

    @property
    def tensor(self) -> str: ...  # noqa: D102 - an attribute
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def needs_base(self) -> bool: ...  # noqa: D102

    def open(self) -> Rows:
        """Load what the adapter has for this tensor.

        Returns:
            A function of (rows, base_rows) that gives those rows of the delta, fp32, shape (n, columns), to be
            overwritten at will. base_rows: the same rows of the base, fp32, shape (n, columns); None unless
            ``needs_base``.
        """
        ...

    def merged(self, base: torch.Tensor) -> torch.Tensor:
        """base + delta, the whole tensor, fp32 in and out: the bits of PEFT's merge_and_unload of an fp32 model.

        The factors are taken to fp32 first. (PEFT rounds the product of bf16 factors back to bf16.)
        """
        ...


@dataclass(frozen=True)
class LowRankChange:
    """The delta scale * up @ down of one layer.

    Attributes:
        adapter: the adapter.
        layer: where its factors lie, and whether the base has the tensor transposed.
        tensor: name of the base's tensor.
        shape: of the base's tensor.
        scale: s as PEFT resolves it.
    """

    adapter: StoredAdapter
    layer: StoredLayer
    tensor: str
    shape: tuple[int, ...]
    scale: float
    needs_base = False

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(up, down), shapes (rows, r) and (r, columns) of the base's tensor, fp32, read from disk."""
        a, b = self._stored()
        return (a.T, b.T) if self.layer.transposed else (b, a)

    def open(self) -> Rows:
        """See ``Change.open``."""
        up, down = self.factors()
        # The scale goes into the small factor, not over every block; so does the transposition.
        up, down = (up * self.scale).contiguous(), down.contiguous()
        return lambda rows, _: up[rows] @ down

    def delta(self, device: torch.device) -> torch.Tensor:
        """The whole delta in PEFT's order of operations: the product, transposed, times s."""
        a, b = (factor.to(device) for factor in self._stored())
        product = b @ a
        return (product.T if self.layer.transposed else product) * self.scale

    def merged(self, base: torch.Tensor) -> torch.Tensor:
        """See ``Change.merged``."""
        return base + self.delta(base.device)

    def _stored(self) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = (read_whole(self.adapter.tensors[key]) for key in (self.layer.down, self.layer.up))
        return a, b


@dataclass(frozen=True)
class DoraChange:
    """m * (W + sBA) / ||W + sBA|| - W, with a norm per row (DoRA, https://arxiv.org/abs/2402.09353, equation 5).

    Attributes:
        direction: sBA.
        magnitude: m, one number per row of the tensor.
    """

    direction: LowRankChange
    magnitude: TensorInfo
    needs_base = True

    @property
    def adapter(self) -> StoredAdapter:
        """The adapter."""
        return self.direction.adapter

    @property
    def tensor(self) -> str:
        """Name of the base's tensor."""
        return self.direction.tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the base's tensor."""
        return self.direction.shape

    def open(self) -> Rows:
        """See ``Change.open``."""
        product, magnitude = self.direction.open(), read_whole(self.magnitude).flatten()

        def delta(rows: slice, base: torch.Tensor | None) -> torch.Tensor:
            assert base is not None
            return _scaled_rows(base + product(rows, None), magnitude[rows]).sub_(base)

        return delta

    def merged(self, base: torch.Tensor) -> torch.Tensor:
        """See ``Change.merged``."""
        magnitude = read_whole(self.magnitude).flatten().to(base.device)
        return _scaled_rows(base + self.direction.delta(base.device), magnitude)


@dataclass(frozen=True)
class BiasShift:
    """scale * b: the bias that ``lora_bias: true`` trains beside B.

    Attributes:
        stored: b.
        tensor: name of the base's bias.
        shape: of the base's bias.
        scale: s of the layer.
    """

    stored: TensorInfo
    tensor: str
    shape: tuple[int, ...]
    scale: float
    needs_base = False

    def open(self) -> Rows:
        """See ``Change.open``."""
        delta = as_matrix(read_whole(self.stored) * self.scale)
        return lambda rows, _: delta[rows].clone()

    def merged(self, base: torch.Tensor) -> torch.Tensor:
        """See ``Change.merged``."""
        return base + (read_whole(self.stored) * self.scale).to(base.device)


@dataclass(frozen=True)
class ReplacedTensor:
    """A tensor that was trained whole (``modules_to_save``, ``bias: all``): the delta is stored - base.

    Attributes:
        stored: the trained tensor.
        tensor: name of the base's tensor.
        shape: of both.
    """

    stored: TensorInfo
    tensor: str
    shape: tuple[int, ...]
    needs_base = True

    def open(self) -> Rows:
        """See ``Change.open``; rows are read when they are asked for."""

        def delta(rows: slice, base: torch.Tensor | None) -> torch.Tensor:
            assert base is not None
            return as_matrix(read_rows(self.stored, rows)).float() - base

        return delta

    def merged(self, base: torch.Tensor) -> torch.Tensor:
        """See ``Change.merged``."""
        return read_whole(self.stored).reshape(base.shape).to(base.device)


def read_whole(tensor: TensorInfo) -> torch.Tensor:
    """All of a tensor in fp32, in memory of torch's own: how it is aligned decides the last bits of a product."""
    import torch

    return read_rows(tensor, slice(None)).to(torch.float32, copy=True).reshape(tensor.shape)


def as_matrix(tensor: torch.Tensor) -> torch.Tensor:
    """(first dimension, all others); a vector as (n, 1), a scalar as (1, 1)."""
    rows = tensor.shape[0] if tensor.ndim else 1
    return tensor.reshape(rows, math.prod(tensor.shape[1:]))


def _scaled_rows(weight: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """Rows scaled to the length ``magnitude``, in PEFT's order of operations."""
    import torch

    return (magnitude / torch.linalg.norm(weight, dim=1)).view(-1, 1) * weight
