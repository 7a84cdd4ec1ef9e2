"""How an adapter changes its base, tensor by tensor: every key of it becomes part of a change, or is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NoReturn

from untax.adapters.base import StoredModel, same_values, shape_text
from untax.adapters.change_kinds import BiasShift, Change, DoraChange, LowRankChange, ReplacedTensor
from untax.adapters.header import TensorInfo
from untax.adapters.mergeable import OUTPUT_LAYER, is_tied, refuse_holes, refuse_other_kinds, refuse_tied
from untax.adapters.statistics import FLOATING
from untax.adapters.stored import CONFIG_NAME, WEIGHTS_NAME, StoredAdapter, StoredLayer
from untax.errors import UntaxError

__all__ = ["Change", "LowRankChange", "read_changes"]

_AGAIN = "The adapter and its configuration or base do not belong together: train or copy it again."
_OWN_BASE = "Merge it with the base it was trained on."
_PEFT = "Merge it with PEFT's merge_and_unload, save the model, and name that instead of base+adapter."


def read_changes(adapter: StoredAdapter, base: StoredModel) -> dict[str, Change]:
    """Every change that the adapter makes, by the name of the tensor in the base's checkpoint, sorted.

    Reads headers, and values only of what the adapter repeats from its base.

    Raises:
        UntaxError: a key that changes nothing known here, which is named; a kind of adapter that cannot be added to
            tensors; a tensor that the base has not, or in another shape, or quantised, or tied to another one.
    """
    refuse_other_kinds(adapter)
    reading = _Reading(adapter, base)
    for layer in adapter.layers:
        reading.take_layer(layer)
    for name in list(reading.left):
        reading.take_whole(name)
    reading.finish()
    refuse_holes(adapter, base)
    return dict(sorted(reading.changes.items()))


class _Reading:
    """What is left of the adapter's keys, by their names in the base model, and the changes that the others make."""

    def __init__(self, adapter: StoredAdapter, base: StoredModel):
        self.adapter, self.base = adapter, base
        self.left = dict(adapter.names)
        self.changes: dict[str, Change] = {}
        self._spelled = {info: name for name, info in base.tensors.items()}
        self._names = {key: name for name, key in adapter.names.items()}
        self._tied, self._embedding = is_tied(base), base.embedding
        self._mixed = any(self._contradicts(layer) for layer in adapter.layers)

    def take_layer(self, layer: StoredLayer) -> None:
        """All keys of one layer with factors: A, B, DoRA's magnitude, a copy of the base's weight, biases."""
        target = self._target(layer.down, layer.tensor)
        layer = self._oriented(layer, target)
        name = self._spelled[target]
        self._add(layer.down, self._with_magnitude(LowRankChange(self.adapter, layer, name, target.shape, layer.scale)))
        del self.left[self._names[layer.down]], self.left[self._names[layer.up]]
        self._take_copy(layer.copy, target)
        self._take_bias_shift(layer)
        self._take_bias(layer)

    def take_whole(self, name: str) -> None:
        """``modules_to_save`` and ``bias: all``: a name of one of the base's tensors, or a repetition of one."""
        original, trained = name.replace(".original_module.", "."), name.replace(".modules_to_save.", ".")
        if original != name and self.base.find(original) is not None:
            self._take_copy(name, self._target(self.left[name], original))
        elif trained != name and trained in self.adapter.names:
            if same_values(*(self.adapter.tensors[self.adapter.names[one]] for one in (name, trained))):
                del self.left[name]
        elif self.base.find(name) is not None:
            self._replace(name, name)

    def finish(self) -> None:
        """Nothing may be left, and nothing missing."""
        if self.left:
            more = f" ({len(self.left) - 1} more)" if len(self.left) > 1 else ""
            key = next(iter(self.left.values()))
            self._refuse(key, f"belongs to no tensor of the base {self.base.folder}{more}.")
        if not self.changes:
            raise UntaxError("The adapter changes nothing.", where=self.adapter.folder / WEIGHTS_NAME, fix=_AGAIN)
        for module in self.adapter.config.get("modules_to_save") or ():
            if _has_module(self.base.tensors, module) and not _has_module(self.adapter.names, module):
                raise UntaxError(
                    f"The adapter has no tensor of {module}, though {CONFIG_NAME} lists it under modules_to_save.",
                    where=self.adapter.folder / WEIGHTS_NAME,
                    fix=_AGAIN,
                )

    def _with_magnitude(self, change: LowRankChange) -> Change:
        if not self.adapter.config.get("use_dora"):
            return change
        layer = change.layer
        key = self.left.pop(f"{layer.module}.lora_magnitude_vector", None)
        if key is None:
            self._refuse(layer.down, "has no lora_magnitude_vector beside it, though use_dora is set.")
        if layer.transposed:
            self._refuse(key, "is DoRA on an embedding or another transposed layer, which is not merged here.", _PEFT)
        magnitude = self.adapter.tensors[key]
        if magnitude.elements != change.shape[0]:
            self._refuse(key, f"has {magnitude.elements} elements for the {change.shape[0]} rows of {change.tensor}.")
        return DoraChange(change, magnitude)

    def _take_copy(self, name: str, target: TensorInfo) -> None:
        """A copy of a base's tensor must be one: PEFT would put it in the place of the base's."""
        key = self.left.pop(name, None)
        if key is None:
            return
        self._check_shape(key, target, self.adapter.tensors[key].shape)
        if not same_values(self.adapter.tensors[key], target):
            self._refuse(key, f"is a copy of {self._spelled[target]} with other values than the base's.", _OWN_BASE)

    def _take_bias_shift(self, layer: StoredLayer) -> None:
        if not self.adapter.config.get("lora_bias") or ".lora_embedding_" in layer.down:
            return
        key = self.left.pop(f"{layer.module}.lora_B.bias", None)
        if key is None:
            self._refuse(layer.up, "has no bias beside it, though lora_bias is set.")
        target = self._target(key, f"{layer.module}.bias")
        stored = self._stored(key, target)
        self._add(key, BiasShift(stored, self._spelled[target], target.shape, layer.scale))

    def _take_bias(self, layer: StoredLayer) -> None:
        bias, wrapped = f"{layer.module}.bias", f"{layer.module}.base_layer.bias"
        if wrapped in self.left:
            self._replace(wrapped, bias)
        lost = self.adapter.config.get("bias") == "lora_only" and self.base.find(bias) is not None
        if lost and wrapped not in self.adapter.names and bias not in self.adapter.names:
            raise UntaxError(
                f"The trained {bias} is not in the adapter: PEFT does not save it with bias: lora_only.",
                where=self.adapter.folder / CONFIG_NAME,
                fix="Train with bias: all, or write bias: none there to merge without the trained biases.",
            )

    def _replace(self, name: str, tensor: str) -> None:
        key = self.left.pop(name)
        target = self._target(key, tensor)
        self._add(key, ReplacedTensor(self._stored(key, target), self._spelled[target], target.shape))

    def _add(self, key: str, change: Change) -> None:
        if change.tensor in self.changes:
            self._refuse(key, f"changes {change.tensor}, which another key changes too.")
        self.changes[change.tensor] = change

    def _target(self, key: str, name: str) -> TensorInfo:
        reason, found = self.base.quantised([name]), self.base.find(name)
        if reason is not None:
            self._refuse(key, f"changes a quantised tensor: {reason}.", "Merge it with the base in 16 or 32 bits.")
        if found is None:
            self._refuse(key, f"changes {name}, which the base {self.base.folder} has not.", _OWN_BASE)
        # An embedding that cannot be told by its name may be any that has factors for tokens.
        embedding = found == self._embedding if self._embedding is not None else ".lora_embedding_" in key
        if self._tied and (embedding or name.endswith(OUTPUT_LAYER)):
            refuse_tied(self.base, key)
        return found

    def _stored(self, key: str, target: TensorInfo) -> TensorInfo:
        stored = self.adapter.tensors[key]
        if stored.dtype not in FLOATING:
            self._refuse(key, f"is stored as {stored.dtype}, which is none of {', '.join(FLOATING)}.")
        self._check_shape(key, target, stored.shape)
        return stored

    def _oriented(self, layer: StoredLayer, target: TensorInfo) -> StoredLayer:
        """PEFT transposes by the kind of a module; the configuration keeps the last one's only, shapes say more."""
        product = self._product(layer)
        if product is None:
            self._refuse(
                layer.down, "is a factor of a convolution or of several matrices; these are not merged.", _PEFT
            )
        embedding = ".lora_embedding_" in layer.down
        fits = [turned for turned in (False, True) if (product[::-1] if turned else product) == target.shape]
        if embedding or not fits:
            self._check_shape(layer.down, target, product[::-1] if layer.transposed else product)
        elif len(fits) == 1:
            return dataclasses.replace(layer, transposed=fits[0])
        elif self._mixed:
            self._refuse(layer.down, "may be transposed or not: fan_in_fan_out does not hold for all layers.", _PEFT)
        return layer

    def _contradicts(self, layer: StoredLayer) -> bool:
        """Whether fan_in_fan_out is wrong about a layer, as its shape shows."""
        target, product = self.base.find(layer.tensor), self._product(layer)
        if target is None or product is None or ".lora_embedding_" in layer.down:
            return False
        return target.shape == (product if layer.transposed else product[::-1]) != target.shape[::-1]

    def _product(self, layer: StoredLayer) -> tuple[int, int] | None:
        """The shape of B @ A; None where the factors are no matrices."""
        up, down = (self.adapter.tensors[key] for key in (layer.up, layer.down))
        floating = {up.dtype, down.dtype} <= {*FLOATING}
        return (up.shape[0], down.shape[1]) if floating and len(up.shape) == len(down.shape) == 2 else None

    def _check_shape(self, key: str, target: TensorInfo, here: tuple[int, ...]) -> None:
        if here == target.shape:
            return
        name, fix = self._spelled[target], _OWN_BASE
        problem = f"{name} is {shape_text(target.shape)} there and {shape_text(here)} here"
        vocabulary = target == self._embedding or name.endswith(OUTPUT_LAYER)
        if vocabulary and here[1:] == target.shape[1:]:
            problem += ", with tokens added or removed"
            fix = f"Save the base with {here[0]} tokens (resize_token_embeddings), then merge with that base."
        raise UntaxError(
            f"The adapter does not fit the base: {problem} (key {key}).",
            where=self.adapter.folder / WEIGHTS_NAME,
            fix=fix,
        )

    def _refuse(self, key: str, problem: str, fix: str = _AGAIN) -> NoReturn:
        raise UntaxError(f"The adapter's key {key} {problem}", where=self.adapter.folder / WEIGHTS_NAME, fix=fix)


def _has_module(names: Iterable[str], module: str) -> bool:
    return any(f".{module}." in f".{name}" for name in names)
