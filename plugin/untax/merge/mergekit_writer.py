"""What happens to a merged tensor before mergekit writes it: the delta is scaled, and everything rounded, once."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax.adapters.base import StoredModel
from untax.errors import UntaxError
from untax.merge.mergekit_reader import gathered, without_adapter

if TYPE_CHECKING:
    import torch
    from mergekit.common import ModelReference
    from mergekit.config import MergeConfiguration


def scaled_base(config: MergeConfiguration, *, where: object) -> ModelReference:
    """The base that a scaled merge steps back to: the one of all inputs, or ``base_model``.

    Raises:
        UntaxError: there is none, or the tokenizers are merged too, so that its embedding has other rows.
    """
    bases = {without_adapter(model) for model in config.referenced_models()}
    if config.tokenizer_source or config.tokenizer:
        problem = "A merge that makes a tokenizer cannot be scaled: its embedding has other rows than the base's."
        raise UntaxError(problem, where=f"{where}, key tokenizer", fix="Leave the key or the scale out.")
    if len(bases) == 1:
        return bases.pop()
    if config.base_model is not None:
        return without_adapter(config.base_model)
    raise UntaxError(
        "The inputs have no common base, so there is no delta to scale.", where=where, fix="Set base_model."
    )


@dataclass(frozen=True)
class Scaling:
    """base + scale * (merged - base).

    Attributes:
        base: the model.
        scale: of the merged delta.
        where: the configuration, for messages.
    """

    base: ModelReference
    scale: float
    where: object

    def __call__(self, task: Any, merged: torch.Tensor) -> torch.Tensor:
        """The scaled tensor that a SaveTensor task is about to write."""
        if not merged.is_floating_point():
            return merged
        base = self._base_tensor(task).to(merged)
        return base + self.scale * (merged - base)

    def _base_tensor(self, task: Any) -> torch.Tensor:
        from mergekit.io.tasks import LoadTensor

        sources = gathered(task.tensor_task.gather_tensors)
        weights = {weight.name: weight for model, weight in sources.items() if without_adapter(model) == self.base}
        if len(weights) != 1:
            problem = f"{task.tensor_name} comes from {len(weights)} tensors of the base, so its delta has no scale."
            raise UntaxError(problem, where=self.where, fix="Scale merges of whole models, or of the same layers.")
        (weight,) = weights.values()
        return LoadTensor(
            model=self.base, tensor=weight.name, aliases=weight.aliases, tied_names=weight.tied_names
        ).execute()


class StoredDtypes:
    """Each tensor in the dtype that the base stores it in; those that it has not, in the dtype of most elements.

    Attributes:
        most: the dtype of most elements, as mergekit spells it.
    """

    def __init__(self, base: Path):
        names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
        tensors = StoredModel(base).tensors.items()
        self._names = {name: names[tensor.dtype] for name, tensor in tensors if tensor.dtype in names}
        elements: Counter[str] = Counter()
        for name, tensor in tensors:
            elements[self._names.get(name, "float32")] += tensor.elements
        self.most = elements.most_common(1)[0][0] if elements else "float32"

    def __call__(self, task: Any, merged: torch.Tensor) -> torch.Tensor:
        """The rounded tensor that a SaveTensor task is about to write."""
        import torch

        name = self._names.get(task.tensor_name, self.most)
        return merged.to(getattr(torch, name)) if merged.is_floating_point() else merged


@contextlib.contextmanager
def finished_by(scaling: Scaling | None, rounding: StoredDtypes | None, *, where: object) -> Iterator[None]:
    """Scale and round every tensor that mergekit writes while the block runs; ``rounding`` replaces mergekit's own.

    Args:
        scaling: or None to leave the delta as it is.
        rounding: or None for mergekit's.
        where: the configuration, for messages.

    Raises:
        UntaxError: a tensor has NaN or infinity, before or after it was rounded.
    """
    from mergekit.common import dtype_from_name
    from mergekit.io.tasks import SaveTensor

    stock = SaveTensor.execute

    def execute(self: Any, writer: Any, tensor: torch.Tensor | None) -> None:
        if tensor is not None and scaling is not None:
            tensor = scaling(self, tensor)
        if tensor is not None and rounding is not None:
            tensor, self = rounding(self, tensor), self.model_copy(update={"dtype": None})
        elif tensor is not None and self.dtype:
            tensor = tensor.to(dtype_from_name(self.dtype))
        if tensor is not None:
            _refuse_nonfinite(self.tensor_name, tensor, where)
        stock(self, writer, tensor)

    SaveTensor.execute = execute
    try:
        yield
    finally:
        SaveTensor.execute = stock


def _refuse_nonfinite(name: str, tensor: torch.Tensor, where: object) -> None:
    import torch

    # No dtype of one byte has an infinity that could be looked for.
    if tensor.is_floating_point() and tensor.element_size() > 1 and not bool(torch.isfinite(tensor).all()):
        raise UntaxError(
            f"The merged {name} has NaN or infinity: so has one of the models, or it overflows {tensor.dtype}.",
            where=where,
            fix="Look at that tensor of each model; set out_dtype: bfloat16 or float32, or smaller weights.",
        )
