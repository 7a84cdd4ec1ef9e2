"""Adapters that cannot be added to their base tensor by tensor, told from their configuration and the base's."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NoReturn

from untax.adapters.base import StoredModel
from untax.adapters.live import BASE_CHANGING_INITS
from untax.adapters.stored import CONFIG_NAME, StoredAdapter
from untax.errors import UntaxError

# By the key of adapter_config.json that switches it on: what makes the kind other than a fixed change of tensors.
_OTHER_KINDS = {
    "use_qalora": "QALoRA's factors work on pooled inputs",
    "use_bdlora": "BD-LoRA's factors are blocks of a diagonal",
    "alora_invocation_tokens": "aLoRA holds for some tokens only",
    "arrow_config": "Arrow's delta depends on the token",
    "target_parameters": "each expert has factors of its own",
    "trainable_token_indices": "it trains single rows of the embedding",
    "layer_replication": "its layers are copies of the base's layers",
}
OUTPUT_LAYER = "lm_head.weight"


def refuse_other_kinds(adapter: StoredAdapter) -> None:
    """Refuse kinds of LoRA that are more, or other, than changes of the base's tensors.

    Raises:
        UntaxError: naming the key of the configuration.
    """
    for key, reason in _OTHER_KINDS.items():
        if adapter.config.get(key):
            _refuse(adapter, f"{key} is set: {reason}")
    init = adapter.config.get("init_lora_weights")
    if isinstance(init, str) and init.startswith(BASE_CHANGING_INITS):
        _refuse(adapter, f"init_lora_weights is {init}, which moves a part of the base into the factors")


def _refuse(adapter: StoredAdapter, reason: str) -> NoReturn:
    raise UntaxError(
        f"The adapter cannot be added to its base tensor by tensor: {reason}.",
        where=adapter.folder / CONFIG_NAME,
        fix="Merge it with PEFT's merge_and_unload, save the model, and name that instead of base+adapter.",
    )


def is_tied(base: StoredModel) -> bool:
    """Whether one tensor of the base is both its embedding and its output layer."""
    declared = base.config.get("tie_word_embeddings")
    if declared is not None:
        return bool(declared)
    return not any(tensor.endswith((OUTPUT_LAYER, "embed_out.weight")) for tensor in base.tensors)


def refuse_tied(base: StoredModel, key: str) -> NoReturn:
    """Refuse a change of the embedding or of the output layer of a base that has one tensor for both.

    Args:
        base: the base.
        key: the adapter's key.

    Raises:
        UntaxError: always.
    """
    raise UntaxError(
        f"The adapter's key {key} changes one of embedding and output layer, and the base has one tensor for both.",
        where=base.folder,
        fix=f"Save the base untied first (tie_word_embeddings: false, a {OUTPUT_LAYER} that is a copy of the "
        "embedding), then merge with that base; it is another one to the adapter, so say --allow-crimes.",
    )


def refuse_holes(adapter: StoredAdapter, base: StoredModel) -> None:
    """Refuse an adapter that lacks the factors of a layer between others: PEFT would make them up.

    What a configuration says in other ways than by a list of names of modules is not looked into.

    Raises:
        UntaxError: naming the layer.
    """
    targets = adapter.config.get("target_modules")
    if not isinstance(targets, list) or any(
        adapter.config.get(key) for key in ("layers_to_transform", "exclude_modules")
    ):
        return
    adapted = {layer.module for layer in adapter.layers}
    last = _last_numbers(adapted)
    for tensor in base.tensors:
        module = tensor.removesuffix(".weight")
        if module == tensor or module in adapted or not _is_target(module, targets):
            continue
        pattern, numbers = _numbered(module)
        if numbers < last[pattern]:
            raise UntaxError(
                f"The adapter misses the factors of {module}, though target_modules in {CONFIG_NAME} says it has them.",
                where=adapter.folder,
                fix="The file and its configuration do not belong together: train or copy the adapter again.",
            )


def _is_target(module: str, targets: list[str]) -> bool:
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _last_numbers(modules: Iterable[str]) -> defaultdict[str, tuple[int, ...]]:
    last: defaultdict[str, tuple[int, ...]] = defaultdict(tuple)
    for module in modules:
        pattern, numbers = _numbered(module)
        last[pattern] = max(last[pattern], numbers)
    return last


def _numbered(module: str) -> tuple[str, tuple[int, ...]]:
    """``layers.3.q_proj`` as (``layers.#.q_proj``, (3,))."""
    return re.sub(r"\d+", "#", module), tuple(map(int, re.findall(r"\d+", module)))
