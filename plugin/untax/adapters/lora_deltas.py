"""The deltas of a stored LoRA adapter, measured layer by layer against the base's tensors."""

from __future__ import annotations

import math
from functools import cached_property
from typing import NoReturn

from untax.adapters.base import StoredModel, shape_text
from untax.adapters.blocks import product_blocks
from untax.adapters.header import TensorInfo
from untax.adapters.live import BASE_CHANGING_INITS
from untax.adapters.sparsity import Advance, LayerSparsity, Thresholds, measure_blocks
from untax.adapters.stored import ADAPTER_FILES, WEIGHTS_NAME, StoredAdapter, StoredLayer
from untax.errors import UntaxError
from untax.manifest import digest_files

# Kinds of LoRA whose delta is something else, by the key of adapter_config.json that switches them on.
_OTHER_KINDS = {
    "use_dora": "DoRA: its delta is m * (W + s*B@A) / ||W + s*B@A|| - W",
    "use_qalora": "QALoRA: its factors work on pooled inputs",
    "use_bdlora": "BD-LoRA: its factors are blocks of a diagonal",
    "alora_invocation_tokens": "aLoRA: its delta holds for some tokens only",
    "arrow_config": "Arrow: its delta depends on the token",
    "target_parameters": "LoRA on bare parameters: each expert has factors of its own",
}


class AdapterDeltas:
    """The deltas s * B @ A of a LoRA adapter.

    Attributes:
        folder: the adapter's folder.
        base: the model that it was trained on, for the relative measures; None without.
        no_relative: why there is no base, in words; None with one.
        not_counted: keys of the adapter that are no delta s * B @ A.
    """

    kind = "lora"

    def __init__(self, adapter: StoredAdapter, base: StoredModel | None = None, no_relative: str | None = None):
        """Check that everything can be measured; no values of the base are read.

        Raises:
            UntaxError: the adapter's delta is not s * B @ A, its factors have NaN or infinity, or the base lacks one of
                its tensors or has it in another shape.
        """
        _refuse_other_kinds(adapter)
        _refuse_nonfinite(adapter)
        self.folder, self.not_counted = adapter.folder, adapter.other_keys
        self._adapter = adapter
        quantised = None if base is None else base.quantised(layer.tensor for layer in adapter.layers)
        if base is not None and quantised:
            no_relative = f"the base {base.folder} is quantised ({quantised})"
            base = None
        self.base, self.no_relative = base, no_relative
        self._tensors = {} if base is None else {layer: _base_tensor(adapter, layer, base) for layer in adapter.layers}

    @property
    def elements(self) -> int:
        """How many elements all deltas have."""
        return sum(math.prod(_shape(self._adapter, layer)) for layer in self._adapter.layers)

    @cached_property
    def identity(self) -> str:
        """The digest of the adapter's files, as merges record it."""
        return digest_files(self.folder, ADAPTER_FILES)

    def measure(self, thresholds: Thresholds, advance: Advance = lambda elements: None) -> tuple[LayerSparsity, ...]:
        """Every layer, in the order of the names; one pair of factors at a time is in memory.

        Raises:
            UntaxError: a product overflows; the base has NaN or infinity.
        """
        from safetensors import safe_open

        found = []
        with safe_open(self.folder / WEIGHTS_NAME, framework="pt") as weights:
            for layer in self._adapter.layers:
                rms = None if self.base is None else self.base.rms(self._tensors[layer])
                up, down = weights.get_tensor(layer.up), weights.get_tensor(layer.down)
                blocks = (block for _, block in product_blocks(up, down, layer.scale))
                found.append(measure_blocks(layer.module, blocks, thresholds, rms, where=self.folder))
                advance(found[-1].elements)
        return tuple(found)


def _shape(adapter: StoredAdapter, layer: StoredLayer) -> tuple[int, int]:
    return adapter.tensors[layer.up].shape[0], adapter.tensors[layer.down].shape[1]


def _refuse_other_kinds(adapter: StoredAdapter) -> None:
    config = adapter.config
    init = config.get("init_lora_weights")
    for key, kind in _OTHER_KINDS.items():
        if config.get(key):
            _refuse(adapter, f"no plain LoRA but {kind}")
    if any("lora_magnitude_vector" in key for key in adapter.tensors):
        _refuse(adapter, f"no plain LoRA but {_OTHER_KINDS['use_dora']}")
    if isinstance(init, str) and init.startswith(BASE_CHANGING_INITS):
        _refuse(adapter, f"one of init_lora_weights: {init}, which moves a part of the base into the factors")
    if not adapter.layers:
        raise UntaxError(
            "The adapter has no LoRA layer.", where=adapter.folder, fix="Name the output folder of a LoRA training."
        )
    for layer in adapter.layers:
        if any(len(adapter.tensors[key].shape) != 2 for key in (layer.up, layer.down)):
            _refuse(adapter, f"no plain LoRA in {layer.module}, whose factors are no matrices")


def _refuse(adapter: StoredAdapter, kind: str) -> NoReturn:
    raise UntaxError(
        f"The adapter is {kind}. What it changes is not s*B@A.",
        where=adapter.folder,
        fix="Merge it into its base, then name the merged model: untax sparsity MERGED --base BASE.",
    )


def _refuse_nonfinite(adapter: StoredAdapter) -> None:
    key = adapter.nonfinite()
    if key is not None:
        raise UntaxError(
            f"The adapter has NaN or infinity in {key}.",
            where=adapter.folder,
            fix="Its training diverged: train it again with a smaller learning rate.",
        )


def _base_tensor(adapter: StoredAdapter, layer: StoredLayer, base: StoredModel) -> TensorInfo:
    shape = _shape(adapter, layer)
    wanted = shape[::-1] if layer.transposed else shape
    tensor = base.find(layer.tensor)
    if tensor is None:
        problem = f"The base has no tensor {layer.tensor}, which the adapter changes."
    elif tensor.shape != wanted:
        own, here = shape_text(tensor.shape), shape_text(wanted)
        problem = f"The adapter does not fit the base: {layer.tensor} is {own} there and {here} here."
    else:
        return tensor
    raise UntaxError(
        problem,
        where=base.folder,
        fix=f"Name the base of {adapter.folder} with --base, or leave the relative share out: --no-base.",
    )
