"""A PEFT LoRA adapter on disk, read as deltas s * B @ A: safetensors only, tensor by tensor."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax.adapters.header import TensorInfo, has_nonfinite, read_header
from untax.errors import UntaxError

if TYPE_CHECKING:
    import torch

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
ADAPTER_FILES = (WEIGHTS_NAME, CONFIG_NAME)
"""The files that make up an adapter: their names and contents are its identity."""

PREFIX = "base_model.model."
# Suffixes of the two factors: down and up projection.
_LINEAR = (".lora_A.weight", ".lora_B.weight")
_EMBEDDING = (".lora_embedding_A", ".lora_embedding_B")
# What activation checkpointing, torch.compile and FSDP put into the names of modules, and savers leave there.
_WRAPPINGS = re.compile(r"(?<![^.])(_checkpoint_wrapped_module|_orig_mod|_fsdp_wrapped_module)\.")


@dataclass(frozen=True)
class StoredLayer:
    """One adapted layer.

    Attributes:
        module: the layer's name in the base model.
        down: key of A, shape (r, in); for an embedding (r, tokens).
        up: key of B, shape (out, r); for an embedding (dimension, r).
        scale: s as PEFT resolves it: alpha / r, or alpha / sqrt(r) with rsLoRA, with the layer's own r and alpha.
        transposed: whether the base's tensor is stored as (in, out): an embedding, or ``fan_in_fan_out``.
    """

    module: str
    down: str
    up: str
    scale: float
    transposed: bool

    @property
    def tensor(self) -> str:
        """The name of the base's tensor that the layer's delta is added to."""
        return f"{self.module}.weight"

    @property
    def copy(self) -> str:
        """The name under which an adapter may repeat that tensor."""
        return f"{self.module}.base_layer.weight"


class StoredAdapter:
    """An adapter folder, whole and readable; tensors are read when they are asked for.

    Attributes:
        folder: the adapter's folder.
        config: the content of adapter_config.json.
        tensors: what adapter_model.safetensors holds, by key.
    """

    def __init__(self, folder: Path):
        """Read the configuration and the weights' header.

        Raises:
            UntaxError: the folder is no adapter, its weights are pickled, cut off, or of a kind other than LoRA.
        """
        self.folder = folder
        self.config = _read_config(folder)
        self.tensors: dict[str, TensorInfo] = read_header(_weights(folder))

    @cached_property
    def names(self) -> dict[str, str]:
        """Key by the name that it has in the base model: without PEFT's prefix and what training wraps modules in.

        Raises:
            UntaxError: two keys have one name.
        """
        found: dict[str, str] = {}
        for key in self.tensors:
            name = _WRAPPINGS.sub("", key).removeprefix(PREFIX)
            if name in found:
                raise UntaxError(
                    f"Two keys of the adapter mean the same: {found[name]} and {key}.",
                    where=self.folder / WEIGHTS_NAME,
                    fix="Save the adapter again, with each tensor once.",
                )
            found[name] = key
        return found

    @cached_property
    def layers(self) -> tuple[StoredLayer, ...]:
        """Every layer with a pair of factors, in the order of the names.

        Raises:
            UntaxError: a factor without its partner, factors whose ranks differ, or one that is no matrix.
        """
        found = [
            self._layer(name.removesuffix(down), down, up, embedding)
            for (down, up), embedding in ((_LINEAR, False), (_EMBEDDING, True))
            for name in self.names
            if name.endswith(down)
        ]
        return tuple(sorted(found, key=lambda layer: layer.module))

    @cached_property
    def copies(self) -> tuple[str, ...]:
        """Keys that repeat a tensor of the base (PEFT saves adapted embeddings whole) and are no delta."""
        return tuple(self.names[layer.copy] for layer in self.layers if layer.copy in self.names)

    @cached_property
    def other_keys(self) -> tuple[str, ...]:
        """Keys that are not a delta s * B @ A: DoRA, biases, modules_to_save, experts, convolutions."""
        known = {key for layer in self.layers for key in (layer.down, layer.up)} | set(self.copies)
        return tuple(key for key in self.tensors if key not in known)

    def nonfinite(self) -> str | None:
        """The key of the first tensor with NaN or infinity, or None."""
        return next((key for key, tensor in self.tensors.items() if has_nonfinite(tensor)), None)

    def deltas(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name of the base's tensor, s * B @ A in fp32 and in the shape of that tensor), one at a time.

        Raises:
            UntaxError: the adapter changes the base in other ways too; the key is named.
        """
        from safetensors import safe_open

        if self.other_keys:
            raise UntaxError(
                f"The adapter is more than deltas s*B@A: {_some(self.other_keys)}.",
                where=self.folder,
                fix="Merge it with `untax merge`, or train plain LoRA.",
            )
        with safe_open(self.folder / WEIGHTS_NAME, framework="pt") as weights:
            for layer in self.layers:
                delta = (weights.get_tensor(layer.up).float() @ weights.get_tensor(layer.down).float()).mul_(
                    layer.scale
                )
                yield layer.tensor, delta.T if layer.transposed else delta

    def _layer(self, name: str, down_suffix: str, up_suffix: str, embedding: bool) -> StoredLayer:
        down, up = self.names[name + down_suffix], self.names.get(name + up_suffix)
        if up is None:
            raise UntaxError(
                f"The adapter has {down} but not {down.removesuffix(down_suffix)}{up_suffix}.",
                where=self.folder / WEIGHTS_NAME,
                fix="Train or copy the adapter again.",
            )
        if min(len(self.tensors[key].shape) for key in (down, up)) < 2 or not self.tensors[down].elements:
            raise UntaxError(
                f"The factors of {name} are no matrices.",
                where=self.folder / WEIGHTS_NAME,
                fix="Train or copy the adapter again.",
            )
        rank = self.tensors[down].shape[0]
        if self.tensors[up].shape[1] != rank:
            raise UntaxError(
                f"The factors of {name} have different ranks: {rank} and {self.tensors[up].shape[1]}.",
                where=self.folder / WEIGHTS_NAME,
                fix="Train or copy the adapter again.",
            )
        return StoredLayer(
            name, down, up, self._scale(name, rank), embedding or bool(self.config.get("fan_in_fan_out"))
        )

    def _scale(self, name: str, rank: int) -> float:
        configured = _by_pattern(self.config.get("rank_pattern"), name, self.config["r"])
        if configured != rank:
            raise UntaxError(
                f"The rank of {name} is {rank}, but {configured} according to {CONFIG_NAME}.",
                where=self.folder,
                fix="Copy both files of the adapter from the same training.",
            )
        alpha = float(_by_pattern(self.config.get("alpha_pattern"), name, self.config["lora_alpha"]))
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank


def _by_pattern(patterns: dict[str, Any] | None, name: str, default: Any) -> Any:
    """PEFT's rule: the first pattern that matches the whole name, or its end after a dot."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if not folder.is_dir():
        raise UntaxError(
            "There is no such adapter folder.", where=folder, fix="Check the path, or train the adapter first."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UntaxError(
            f"The folder is no adapter: it has no {CONFIG_NAME}.",
            where=folder,
            fix="Name the output folder of a LoRA training.",
        ) from error
    except (OSError, ValueError) as error:
        raise UntaxError(
            f"The adapter's configuration cannot be read: {error}.", where=path, fix="Train or copy the adapter again."
        ) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or not {"r", "lora_alpha"} <= config.keys():
        kind = config.get("peft_type", "unknown") if isinstance(config, dict) else "unknown"
        raise UntaxError(
            f"The adapter is no LoRA adapter (peft_type: {kind}).", where=path, fix="Only LoRA adapters can be merged."
        )
    for key, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        if not _are_numbers([config[key]], config.get(pattern) or {}):
            raise UntaxError(
                f"What stands under {key} or {pattern} is no number, or no numbers by patterns of names.",
                where=path,
                fix="Train or copy the adapter again.",
            )
    return config


def _are_numbers(values: list[Any], patterns: Any) -> bool:
    if not isinstance(patterns, dict):
        return False
    try:
        for pattern in patterns:
            re.compile(pattern)
    except re.error:
        return False
    return all(type(value) in (int, float) and math.isfinite(value) for value in (*values, *patterns.values()))


def _weights(folder: Path) -> Path:
    path = folder / WEIGHTS_NAME
    if path.is_file():
        return path
    if (folder / "adapter_model.bin").exists():
        raise UntaxError(
            "The adapter's weights are pickled (adapter_model.bin), and a pickle can run any code.",
            where=folder,
            fix=f"Save the adapter again as {WEIGHTS_NAME} (save_safetensors: true).",
        )
    raise UntaxError(
        f"The adapter has no {WEIGHTS_NAME}: its training did not end.",
        where=folder,
        fix="Train it again, or name a finished adapter.",
    )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
