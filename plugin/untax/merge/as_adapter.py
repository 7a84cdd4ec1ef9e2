"""Adapters merged into one adapter: exact, since a sum of products is the product of the stacked factors."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax.adapters.base import StoredModel, same_values
from untax.adapters.header import make_header
from untax.adapters.live import BASE_CHANGING_INITS
from untax.adapters.statistics import FLOATING
from untax.adapters.stored import CONFIG_NAME, PREFIX, WEIGHTS_NAME, StoredAdapter, StoredLayer
from untax.errors import UntaxError
from untax.merge.recompress import (
    INTO_A_MODEL,
    Combined,
    CombinedLayer,
    Shape,
    Share,
    combine,
    refuse_key,
    stacked_shapes,
    written_rank,
)
from untax.merge.replaced import Replaced, merged_tensor

if TYPE_CHECKING:
    import torch

Coefficients = Callable[[str], Sequence[float]]
Scaled = Callable[[float], "torch.Tensor"]  # a tensor to be written, by the scale

_NOT_LINEAR = ("use_dora", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "target_parameters")
# What PEFT does with a whole adapter, so that adapters which differ in it have no common one.
_SHARED = ("layer_replication", "ensure_weight_tying")
_CARRIED = ("task_type", "auto_mapping", "peft_version", *_SHARED)


@dataclass
class _Parts:
    """One adapter's keys, each in its place.

    Attributes:
        layers: module -> its factors.
        replaced: tensor of the base -> the key of what stands in its place.
        saved: those tensors that belong to ``modules_to_save`` -> the module.
    """

    layers: dict[str, StoredLayer] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    saved: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Plan:
    """The merge before it is computed: who takes part in which layer, and which tensors are replaced."""

    layers: dict[str, list[Share]]
    replaced: list[Replaced]
    saved: list[str]


def write_combined(
    outs: Sequence[Path],
    adapters: Sequence[StoredAdapter],
    coefficients: Coefficients,
    *,
    rank: int | None = None,
    scales: Sequence[float] = (1.0,),
    base: StoredModel | None = None,
    base_name: str,
    base_revision: str | None = None,
    progress: Callable[[int], object] = lambda size: None,
) -> Combined:
    """Write, for each scale, the adapter whose delta is scale * sum of c_k * delta_k; factors are computed once.

    The factors are stacked in fp32: nothing is lost, and the rank is the sum of the ranks. With ``rank``, layers of a
    larger one are cut to it by a truncated SVD. One layer at a time is in memory.

    Args:
        outs: an empty folder for each scale.
        adapters: the K adapters, all of one base.
        coefficients: called with the name of a tensor of the base, it returns c_1 ... c_K.
        rank: R; None to cut nothing.
        scales: of the whole delta.
        base: read only where it is needed: for tensors that an adapter replaces (``modules_to_save``, biases) with
            coefficients that do not sum up to 1, and for copies of the base's tensors that an adapter carries along.
        base_name: ``base_model_name_or_path`` of the new adapter.
        base_revision: its ``revision``.
        progress: called with the number of bytes after each tensor that was written to all of them.

    Raises:
        UntaxError: an adapter is no linear change of the base, a key has no place, factors do not fit each other, the
            base is needed and is not given, or nothing would be left to write.
    """
    parts = check_linear(adapters, base)
    plan = _plan(adapters, parts, lambda tensor: coefficients(_stored_name(base, tensor)))
    if not plan.layers or not all(scales):
        raise UntaxError(
            "The merged adapter would have no layer: every coefficient or a scale is 0, or every layer is saved whole.",
            where=adapters[0].folder,
            fix=f"Check the weights. {INTO_A_MODEL}",
        )
    ranks = {module: written_rank(shares, rank) for module, shares in plan.layers.items()}
    done: list[CombinedLayer] = []
    head = make_header((key, "F32", shape, 4 * math.prod(shape)) for key, shape in _shapes(plan, ranks).items())
    config = _config(adapters, plan, ranks) | {"base_model_name_or_path": base_name, "revision": base_revision}
    for out in outs:
        (out / CONFIG_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (out / WEIGHTS_NAME).write_bytes(head)
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context((out / WEIGHTS_NAME).open("ab")) for out in outs]
        for scaled in itertools.chain(
            _factors(plan, rank, done), (merged_tensor(item, base) for item in plan.replaced)
        ):
            for file, scale in zip(files, scales, strict=True):
                values = scaled(scale).contiguous().numpy()
                file.write(values.data)
            progress(values.nbytes)
    return Combined(tuple(done), tuple(item.tensor for item in plan.replaced))


def check_linear(adapters: Sequence[StoredAdapter], base: StoredModel | None) -> list[_Parts]:
    """Every key of every adapter in its place; nothing is written, and values are read of copies only.

    Raises:
        UntaxError: an adapter is no linear change of the base, or a key has no place.
    """
    _check_shared(adapters)
    return [_parts(adapter, base) for adapter in adapters]


def _check_shared(adapters: Sequence[StoredAdapter]) -> None:
    for key, adapter in itertools.product(_SHARED, adapters):
        one, other = adapters[0].config.get(key) or None, adapter.config.get(key) or None
        if one != other:
            where = adapter.folder / CONFIG_NAME
            raise UntaxError(f"The adapters differ in {key}: {one} and {other}.", where=where, fix=INTO_A_MODEL)


def _parts(adapter: StoredAdapter, base: StoredModel | None) -> _Parts:
    """Every key of an adapter in its place.

    Raises:
        UntaxError: a key has none.
    """
    _check_linear(adapter)
    parts = _Parts({layer.module: layer for layer in adapter.layers})
    factors = {key for layer in adapter.layers for key in (layer.down, layer.up)}
    for name, key in adapter.names.items():
        if adapter.tensors[key].dtype not in FLOATING:
            refuse_key(adapter, key, f"is of dtype {adapter.tensors[key].dtype}")
        if key in factors:
            continue
        tensor = re.sub(r"\.base_layer(\.[^.]+)$", r"\1", name)
        saved = _saved_module(tensor, adapter.config.get("modules_to_save") or [])
        if ".lora_" in name:
            refuse_key(adapter, key, "is no factor of a change s*B@A")
        elif ".original_module." in name or ".modules_to_save." in name:
            _check_copy(adapter, key, re.sub(r"\.(original_module|modules_to_save)\.", ".", name), base)
        elif saved or (tensor.endswith(".bias") and adapter.config.get("bias", "none") != "none"):
            parts.replaced[tensor] = key
            parts.saved |= {tensor: saved} if saved else {}
        else:
            _check_copy(adapter, key, tensor, base)
    return parts


def _check_linear(adapter: StoredAdapter) -> None:
    kinds = [key for key in _NOT_LINEAR if adapter.config.get(key)]
    init = adapter.config.get("init_lora_weights")
    if isinstance(init, str) and init.startswith(BASE_CHANGING_INITS):
        kinds.append(f"init_lora_weights: {init}")
    if kinds:
        key = next((f", key {key}" for key in adapter.other_keys if ".lora_" in key), "")
        raise UntaxError(
            f"What the adapter changes is more than s*B@A ({kinds[0]}{key}).",
            where=adapter.folder / CONFIG_NAME,
            fix=INTO_A_MODEL,
        )


def _check_copy(adapter: StoredAdapter, key: str, tensor: str, base: StoredModel | None) -> None:
    """PEFT saves an adapted embedding whole beside its factors: a copy of the base's, unless its rows were added to."""
    own, twin = None if base is None else base.find(tensor), adapter.names.get(tensor, key)
    others = [info for info in (own, adapter.tensors[twin] if twin != key else None) if info is not None]
    if not any(same_values(adapter.tensors[key], info) for info in others):
        unknown = "a copy of the base's, which is not at hand" if base is None else "a copy of the base's"
        refuse_key(adapter, key, f"is neither a linear change of {tensor} nor {unknown}")


def _saved_module(tensor: str, entries: Sequence[str]) -> str | None:
    """The module that a tensor was saved with, by PEFT's rule: one whose name ends in an entry of modules_to_save."""
    steps = tensor.split(".")
    modules = (".".join(steps[:end]) for end in range(1, len(steps)))
    return next((module for module in modules if module.endswith(tuple(entries))), None)


def _stored_name(base: StoredModel | None, tensor: str) -> str:
    """How the base's checkpoint spells it: GPT-2's leaves out ``transformer.``."""
    short = tensor.partition(".")[2]
    return short if base is not None and tensor not in base.tensors and short in base.tensors else tensor


def _plan(adapters: Sequence[StoredAdapter], parts: Sequence[_Parts], coefficients: Coefficients) -> _Plan:
    """Who takes part in what; a coefficient of 0 leaves an adapter out."""

    def having(tensor: str, found: list[Any]) -> list[tuple[StoredAdapter, float, Any]]:
        return [item for item in zip(adapters, coefficients(tensor), found, strict=True) if item[2] is not None]

    names = sorted({tensor for part in parts for tensor in part.replaced})
    keys = {tensor: having(tensor, [part.replaced.get(tensor) for part in parts]) for tensor in names}
    changed = {tensor for tensor, found in keys.items() if any(c for _, c, _ in found)}
    # PEFT wants all tensors of a saved module, or none.
    modules = {tensor: module for part in parts for tensor, module in part.saved.items()}
    saved = {modules[tensor] for tensor in changed if tensor in modules}
    written = [tensor for tensor in names if tensor in changed or modules.get(tensor) in saved]
    replaced = {tensor: Replaced(tensor, keys[tensor]) for tensor in written}
    layers = {}
    for module in sorted({module for part in parts for module in part.layers}):
        tensor = f"{module}.weight"
        found = having(tensor, [part.layers.get(module) for part in parts])
        shares = [Share(adapter, c, layer) for adapter, c, layer in found if c]
        if tensor in replaced:
            replaced[tensor].shares.extend(shares)
        elif shares:
            layers[module] = shares
    return _Plan(layers, list(replaced.values()), sorted(saved))


def _shapes(plan: _Plan, ranks: dict[str, int]) -> dict[str, Shape]:
    """Shapes by key, in PEFT's names and in the order in which the tensors are written."""
    shapes: dict[str, Shape] = {}
    for module, shares in plan.layers.items():
        (out, _, *rest), (_, *columns) = stacked_shapes(shares)
        kind, end = ("lora_embedding_", "") if shares[0].is_embedding else ("lora_", ".weight")
        shapes[f"{PREFIX}{module}.{kind}A{end}"] = (ranks[module], *columns)
        shapes[f"{PREFIX}{module}.{kind}B{end}"] = (out, ranks[module], *rest)
    for item in plan.replaced:
        module, _, parameter = item.tensor.rpartition(".")
        inside = f"{module}.base_layer.{parameter}" if module in plan.layers else item.tensor
        shapes[PREFIX + inside] = item.shape
    return shapes


def _factors(plan: _Plan, rank: int | None, done: list[CombinedLayer]) -> Iterator[Scaled]:
    """A and B of each layer, A times the scale; what became of the layer is added to ``done``."""
    for module, shares in plan.layers.items():
        layer, (up, down) = combine(module, shares, rank)
        yield down.mul
        yield _whatever_the_scale(up)
        done.append(layer)


def _whatever_the_scale(tensor: torch.Tensor) -> Scaled:
    return lambda scale: tensor


def _config(adapters: Sequence[StoredAdapter], plan: _Plan, ranks: dict[str, int]) -> dict[str, Any]:
    """alpha is r in every layer, so that s = 1 also for readers that know no patterns."""
    counted = Counter(ranks.values())
    common = max(counted, key=lambda rank: (counted[rank], rank))
    # PEFT matches a pattern with the end of a name too, unless it is bound to the beginning.
    others = {f"^{re.escape(module)}": rank for module, rank in ranks.items() if rank != common}
    inside = tuple(f"{module}." for module in plan.saved)
    biases = [item for item in plan.replaced if item.tensor.endswith(".bias") and not item.tensor.startswith(inside)]
    first = adapters[0].config
    return {key: first[key] for key in _CARRIED if key in first} | {
        "peft_type": "LORA",
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": list(plan.layers),
        "modules_to_save": plan.saved or None,
        "bias": "all" if biases else "none",
        "fan_in_fan_out": any(bool(adapter.config.get("fan_in_fan_out")) for adapter in adapters),
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
