"""The deltas of a full fine-tuning on disk: a whole model minus its base, streamed tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from untax.adapters.base import StoredModel, chunks, same_values, shape_text
from untax.adapters.header import TensorInfo
from untax.adapters.sparsity import Advance, LayerSparsity, Thresholds, measure_blocks
from untax.adapters.statistics import FLOATING
from untax.adapters.stored import CONFIG_NAME
from untax.errors import UntaxError

if TYPE_CHECKING:
    import torch

_OUTPUT_LAYER = "lm_head.weight"
# Computed from the configuration when a model is loaded; old checkpoints have it, new ones do not.
_NO_WEIGHT = ".rotary_emb.inv_freq"
# Masks and positions; every other dtype that is no real number is a quantised weight.
_BUFFERS = ("I64", "BOOL")
_FIX = "Name the base that the model was trained from: --base MODEL."


class ModelDeltas:
    """The deltas of a whole model.

    Attributes:
        folder: the model's folder.
        base: the model that it was trained from.
        no_relative: None: there is always a base.
        not_counted: names of tensors that are no weights of their own: buffers, and a tied output layer.
    """

    kind = "model"
    no_relative: str | None = None

    def __init__(self, model: StoredModel, base: StoredModel):
        """Pair the tensors of both; no values are read, but those of an output layer that may be tied.

        Raises:
            UntaxError: a tensor that one of them lacks, that has another shape there, or that is quantised.
        """
        self.folder, self.base, self._model = model.folder, base, model
        everything = model.tensors.keys() | base.tensors.keys()
        left_out = {name for name in everything if _is_no_weight(name, model, base)}
        pairs = {name: _pair(name, model, base) for name in sorted(everything - left_out)}
        buffers = {name for name, (mine, _) in pairs.items() if mine.dtype in _BUFFERS}
        self._pairs = {name: pair for name, pair in pairs.items() if name not in buffers and pair[0].elements}
        self.not_counted = tuple(sorted(left_out | buffers))
        if not self._pairs:
            raise UntaxError("The model has no weights.", where=model.folder, fix="Copy or download it again.")

    @property
    def elements(self) -> int:
        """How many elements all deltas have."""
        return sum(mine.elements for mine, _ in self._pairs.values())

    @property
    def identity(self) -> str:
        """The model's identity: see ``StoredModel``."""
        return self._model.identity

    def measure(self, thresholds: Thresholds, advance: Advance = lambda elements: None) -> tuple[LayerSparsity, ...]:
        """Every weight, in the order of the names; a chunk at a time is in memory.

        Raises:
            UntaxError: NaN or infinity in either model; the tensor is named.
        """
        found = []
        for name, (mine, theirs) in self._pairs.items():
            rms, blocks = self.base.rms(theirs), _differences(mine, theirs)
            found.append(measure_blocks(name.removesuffix(".weight"), blocks, thresholds, rms, where=self.folder))
            advance(found[-1].elements)
        return tuple(found)


def is_whole_model(folder: Path) -> bool:
    """Whether a folder is a model and no adapter; a DPO training may leave its whole base beside its adapter."""
    return (folder / "config.json").is_file() and not (folder / CONFIG_NAME).is_file()


def _differences(mine: TensorInfo, theirs: TensorInfo) -> Iterator[torch.Tensor]:
    for own, other in zip(chunks(mine), chunks(theirs), strict=True):
        yield own - other


def _is_no_weight(name: str, model: StoredModel, base: StoredModel) -> bool:
    """Whether every model that has this tensor has it as a copy, or as a buffer, of something else."""
    if name.endswith(_NO_WEIGHT):
        return True
    owners = [one for one in (model, base) if name in one.tensors]
    may_be_tied = len(owners) == 1 or all(one.config.get("tie_word_embeddings") for one in owners)
    return name == _OUTPUT_LAYER and may_be_tied and all(map(_is_tied, owners))


def _is_tied(model: StoredModel) -> bool:
    embedding = model.embedding
    return embedding is not None and same_values(model.tensors[_OUTPUT_LAYER], embedding)


def _pair(name: str, model: StoredModel, base: StoredModel) -> tuple[TensorInfo, TensorInfo]:
    mine, theirs = model.tensors.get(name), base.tensors.get(name)
    if mine is None or theirs is None:
        owner, other = (base, model) if mine is None else (model, base)
        raise UntaxError(
            f"{owner.folder} has the tensor {name}, but {other.folder} has not.", where=model.folder, fix=_FIX
        )
    if mine.shape != theirs.shape:
        own, here = shape_text(theirs.shape), shape_text(mine.shape)
        raise UntaxError(
            f"The model does not fit the base: {name} is {own} there and {here} here.", where=model.folder, fix=_FIX
        )
    kinds = {mine.dtype, theirs.dtype}
    if not (kinds <= {*FLOATING} or kinds <= {*_BUFFERS}):
        raise UntaxError(
            f"{name} is stored as {mine.dtype} here and as {theirs.dtype} in the base: there is no difference to take.",
            where=model.folder,
            fix="Name models that are not quantised.",
        )
    return mine, theirs
