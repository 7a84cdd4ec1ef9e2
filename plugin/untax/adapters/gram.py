"""The Grams of a model's linear layers on disk, as `untax gram` writes them: one read at a time."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax.adapters.header import TensorInfo, read_header
from untax.adapters.rows import read_rows
from untax.adapters.statistics import FLOATING
from untax.errors import UntaxError

if TYPE_CHECKING:
    import torch

_AGAIN = "Make the file again: untax gram."


class Grams:
    """G = X^T X / tokens for some of a model's linear weights, under the names that they have in its checkpoint.

    Attributes:
        path: the safetensors file.
    """

    def __init__(self, path: Path):
        """Read the header; values are read when they are asked for.

        Raises:
            UntaxError: the file is missing, cut off or no safetensors file, or holds other things than Grams.
        """
        self.path = Path(path)
        self._tensors: dict[str, TensorInfo] = read_header(self.path)
        if not self._tensors:
            raise UntaxError("The file holds no tensor.", where=self.path, fix=_AGAIN)
        for name, tensor in self._tensors.items():
            if len(tensor.shape) != 2 or tensor.shape[0] != tensor.shape[1] or tensor.dtype not in FLOATING:
                raise UntaxError(
                    f"The tensor {name} is no Gram, a square matrix of real numbers: "
                    f"it has the shape {list(tensor.shape)} and the dtype {tensor.dtype}.",
                    where=self.path,
                    fix=_AGAIN,
                )
        for name, owner in self._shared.items():
            if owner not in self._tensors:
                raise UntaxError(
                    f"The file says that {name} has the Gram of {owner}, which it lacks.", where=self.path, fix=_AGAIN
                )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The weights that it has a Gram for, sorted."""
        return tuple(sorted({*self._tensors, *self._shared}))

    @cached_property
    def metadata(self) -> dict[str, str]:
        """What the file says about itself."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                return dict(file.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise UntaxError(f"The file cannot be read: {error}.", where=self.path, fix=_AGAIN) from error

    def __contains__(self, name: object) -> bool:
        """Whether a weight has a Gram."""
        return name in self._tensors or name in self._shared

    def is_transposed(self, name: str) -> bool:
        """Whether the model stores the weight as (in, out)."""
        return name in self._transposed

    def check(self, name: str, columns: int) -> None:
        """Make sure that a Gram fits a weight.

        Args:
            name: the weight's name in the checkpoint.
            columns: how many features its layer reads: the weight's columns, or rows where it is stored as (in, out).

        Raises:
            UntaxError: the file lacks it, or has it for another number of features.
        """
        size = self._tensor(name).shape[0]
        if size != columns:
            raise UntaxError(
                f"The Gram of {name} is {size} x {size}, but the layer reads {columns} features.",
                where=self.path,
                fix="Use the file that was made from a model of this very base.",
            )

    def gram(self, name: str) -> torch.Tensor:
        """The Gram of a weight, shape (in, in), fp32: a copy.

        Raises:
            UntaxError: there is none.
        """
        import torch

        return read_rows(self._tensor(name), slice(None)).to(torch.float32).reshape(self._tensor(name).shape)

    def _tensor(self, name: str) -> TensorInfo:
        tensor = self._tensors.get(self._shared.get(name, name))
        if tensor is None:
            raise UntaxError(
                f"There is no Gram of {name}; the file has {len(self.names)}, the first is of {self.names[0]}.",
                where=self.path,
                fix="Make the file from a model of this very base: untax gram BASE+ADAPTER.",
            )
        return tensor

    @cached_property
    def _shared(self) -> dict[str, str]:
        """Name -> the weight whose Gram it has."""
        found = self._note("shared", "{}")
        if isinstance(found, dict) and all(isinstance(owner, str) for owner in found.values()):
            return found
        raise self._unreadable("shared")

    @cached_property
    def _transposed(self) -> frozenset[str]:
        found = self._note("transposed", "[]")
        if isinstance(found, list) and all(isinstance(name, str) for name in found):
            return frozenset(found)
        raise self._unreadable("transposed")

    def _note(self, key: str, default: str) -> Any:
        try:
            return json.loads(self.metadata.get(key, default))
        except ValueError as error:
            raise self._unreadable(key) from error

    def _unreadable(self, key: str) -> UntaxError:
        return UntaxError(f"The metadata '{key}' cannot be read.", where=self.path, fix=_AGAIN)
