"""A diagonal statistic of a model's weights on disk, such as its Fisher information: read by rows, nothing kept."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax.adapters.blocks import row_blocks
from untax.adapters.header import TensorInfo, read_header
from untax.adapters.rows import read_rows
from untax.errors import UntaxError, near_names

if TYPE_CHECKING:
    import torch

FLOATING = ("F64", "F32", "F16", "BF16")
_AGAIN = "Make the file again, with `untax fisher` for instance."


class Diagonal:
    """One number for each element of some of a model's weights, under the names that they have in its checkpoint.

    Attributes:
        path: the safetensors file.
        tensors: what it holds, by name.
    """

    def __init__(self, path: Path):
        """Read the header; values are read when they are asked for.

        Raises:
            UntaxError: the file is missing, cut off, no safetensors file, or has a tensor that is not of real numbers.
        """
        self.path = Path(path)
        self.tensors: dict[str, TensorInfo] = read_header(self.path)
        if not self.tensors:
            raise UntaxError("The file holds no tensor.", where=self.path, fix=_AGAIN)
        for name, tensor in self.tensors.items():
            if tensor.dtype not in FLOATING:
                raise UntaxError(
                    f"The tensor {name} is of dtype {tensor.dtype}, which is none of {', '.join(FLOATING)}.",
                    where=self.path,
                    fix=_AGAIN,
                )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The weights that it has numbers for, sorted."""
        return tuple(sorted(self.tensors))

    @cached_property
    def metadata(self) -> dict[str, str]:
        """What the file says about itself."""
        return dict(self._file.metadata() or {})

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Make sure that there is one number for each element of a weight.

        Args:
            name: the weight's name in the checkpoint of the base.
            shape: its shape.

        Raises:
            UntaxError: the file lacks it, or has it in another shape.
        """
        own = self._tensor(name).shape
        if own != tuple(shape):
            raise UntaxError(
                f"The tensor {name} has the shape {list(own)}, but the model's weight {list(shape)}.",
                where=self.path,
                fix="Use the file that was made from this very base model.",
            )

    def rows(self, name: str, rows: slice) -> torch.Tensor:
        """Some rows of a tensor in fp32: a copy, of which the file keeps nothing.

        Args:
            name: the weight's name.
            rows: consecutive ones; for a vector its elements.

        Returns:
            Shape (number of rows, ...): the tensor's own but for the first dimension. A single number, of shape (), is
            returned whatever the rows.

        Raises:
            UntaxError: there is no such tensor.
            ValueError: the rows are not consecutive.
        """
        import torch

        tensor = self._tensor(name)
        if rows.step not in (None, 1):
            raise ValueError(f"rows of {name} must be consecutive")
        # A single number has one row, whatever is asked for.
        wanted = rows if tensor.shape else slice(0, 1)
        return (
            read_rows(tensor, wanted)
            .to(torch.float32)
            .reshape(tensor.shape if not tensor.shape else (-1, *tensor.shape[1:]))
        )

    def validate(self, names: Iterable[str] | None = None) -> None:
        """Read every value once, block by block.

        Args:
            names: of some tensors; all of them by default.

        Raises:
            UntaxError: one is NaN, infinite or below zero; the tensor is named.
        """
        for name in self.names if names is None else names:
            rows, *columns = self._tensor(name).shape or (1,)
            for block in row_blocks(rows, math.prod(columns)):
                self._refuse(name, self.rows(name, block))

    def _refuse(self, name: str, values: torch.Tensor) -> None:
        import torch

        if not bool(torch.isfinite(values).all()):
            problem = "holds NaN or infinity"
        elif bool((values < 0).any()):
            problem = "holds a value below zero, which is no mean of squares"
        else:
            return
        raise UntaxError(f"The tensor {name} {problem}.", where=self.path, fix=_AGAIN)

    def _tensor(self, name: str) -> TensorInfo:
        """Checkpoints may leave out what the model's class puts in front, as GPT-2's have ``h.0.``."""
        for spelled in (name, name.partition(".")[2]):
            if spelled in self.tensors:
                return self.tensors[spelled]
        raise UntaxError(
            f"There is no tensor {name}. {_hint(name, self.names)}",
            where=self.path,
            fix="Make the file from this very base model; `--modules all` is for more than its linear layers.",
        )

    @cached_property
    def _file(self) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UntaxError(f"The file cannot be read: {error}.", where=self.path, fix=_AGAIN) from error


def _hint(name: str, known: tuple[str, ...]) -> str:
    """Near names, without listing the hundreds that a model has."""
    near = near_names(name, list(known)).partition("Known:")[0].strip()
    return near or f"It has {len(known)}, the first is {known[0]}."
