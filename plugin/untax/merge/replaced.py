"""Tensors of merged adapters that stand whole in place of the base's: of ``modules_to_save``, and biases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from untax.adapters.base import StoredModel
from untax.adapters.rows import read_rows
from untax.adapters.statistics import FLOATING
from untax.adapters.stored import StoredAdapter
from untax.merge.recompress import Shape, Share, refuse_key

if TYPE_CHECKING:
    import torch

    Scaled = Callable[[float], torch.Tensor]

# How far from 1 a sum of coefficients may be for reasons of rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Replaced:
    """A tensor that stands in place of the base's.

    Attributes:
        tensor: its name in the base.
        keys: (adapter, c_k, key) of those that replace it.
        shares: of those that change it by factors.
    """

    tensor: str
    keys: list[tuple[StoredAdapter, float, str]]
    shares: list[Share] = field(default_factory=list)

    @property
    def shape(self) -> Shape:
        """Its shape.

        Raises:
            UntaxError: the adapters have different ones.
        """
        (first, _, own), *_ = self.keys
        shape = first.tensors[own].shape
        for adapter, _, key in self.keys:
            if adapter.tensors[key].shape != shape:
                refuse_key(adapter, key, f"has another shape than in {first.folder}")
        return shape


def merged_tensor(item: Replaced, base: StoredModel | None) -> Scaled:
    """W + scale * (sum of c_k * (T_k - W), and the deltas of those who change W by factors)."""
    import torch

    def scaled(scale: float) -> torch.Tensor:
        left = 1.0 - scale * math.fsum(c for _, c, _ in item.keys)
        merged = torch.zeros(item.shape) if abs(left) < _ROUNDING else _of_base(item, base).mul_(left)
        for adapter, c, key in item.keys:
            merged.add_(read_rows(adapter.tensors[key], slice(None)).float().reshape(item.shape), alpha=scale * c)
        for share in item.shares:
            up, down = share.read()
            merged.add_(_fitting(share, up.flatten(1) @ down.flatten(1), item.shape), alpha=scale)
        return merged

    return scaled


def _fitting(share: Share, delta: torch.Tensor, shape: Shape) -> torch.Tensor:
    """A delta in the shape of the tensor that it is added to; the configuration tells only where shapes do not."""
    wanted = (shape[0], math.prod(shape[1:]))
    turned = share.layer.transposed if wanted[0] == wanted[1] else delta.shape != wanted
    delta = delta.T if turned else delta
    if delta.shape != wanted:
        refuse_key(share.adapter, share.layer.down, f"does not fit {share.layer.tensor} of another adapter")
    return delta.reshape(shape)


def _of_base(item: Replaced, base: StoredModel | None) -> torch.Tensor:
    adapter, _, key = item.keys[0]
    found = None if base is None else base.find(item.tensor)
    if found is None or found.shape != item.shape or found.dtype not in FLOATING:
        lacking = (
            "which is not at hand" if base is None else f"which has no {item.tensor} of real numbers in this shape"
        )
        refuse_key(adapter, key, f"is no delta, and coefficients that do not sum up to 1 need the base, {lacking}")
    return read_rows(found, slice(None)).float().reshape(item.shape)
