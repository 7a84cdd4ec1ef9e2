"""Which weights a training trains, by its Axolotl keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from untax.errors import UntaxError
from untax.recipes.cost.architecture import Architecture, Linear


@dataclass(frozen=True)
class Trained:
    """What is trained.

    Attributes:
        adapted: the linear layers of one decoder layer that have LoRA factors.
        outside: adapted tables outside the layers, and the sizes of modules that are trained whole beside the factors.
        rank: of the factors; 0 without an adapter.
        dropout: on the input of the factors.
        full: the whole model is trained.
    """

    adapted: tuple[Linear, ...] = ()
    outside: int = 0
    rank: int = 0
    dropout: float = 0.0
    full: bool = False

    def parameters(self, architecture: Architecture) -> int:
        """Weights that get gradients."""
        if self.full:
            return architecture.parameters()
        factors = sum(self.rank * (linear.inputs + linear.outputs) for linear in self.adapted)
        return architecture.layers * factors + self.outside


def trained(architecture: Architecture, keys: Mapping[str, Any]) -> Trained:
    """What the keys train of a model; without ``adapter`` it is all of it.

    Raises:
        UntaxError: ``lora_target_modules`` is a broken pattern.
    """
    if keys.get("adapter") not in ("lora", "qlora"):
        return Trained(full=True)
    rank = int(keys.get("lora_r") or 8)
    tables = (
        Linear("model.embed_tokens", architecture.vocabulary, architecture.hidden),
        Linear("lm_head", architecture.hidden, architecture.vocabulary),
    )
    factors = sum(rank * (table.inputs + table.outputs) for table in tables if _is_named(table.name, keys))
    saved = keys.get("lora_modules_to_save") or []
    whole = sum(table.size for table in tables if table.name.rpartition(".")[2] in saved)
    adapted = tuple(linear for linear in architecture.linears if _is_adapted(linear.name, keys))
    return Trained(adapted, factors + whole, rank, float(keys.get("lora_dropout") or 0))


def _is_adapted(name: str, keys: Mapping[str, Any]) -> bool:
    """All linear layers of the decoder with ``lora_target_linear``, or those that ``lora_target_modules`` names."""
    everything = bool(keys.get("lora_target_linear")) or keys.get("lora_target_modules") == "all-linear"
    return everything or _is_named(name, keys)


def _is_named(name: str, keys: Mapping[str, Any]) -> bool:
    """As PEFT takes it: text is a pattern for the whole name, a list has ends of names."""
    named = keys.get("lora_target_modules") or []
    if isinstance(named, str):
        # Axolotl's model is inside PEFT's, whose names begin as the checkpoint's.
        return named != "all-linear" and _matches(named, name)
    return any(name == end or name.endswith(f".{end}") for end in map(str, named))


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise UntaxError(
            f"{pattern!r} is no pattern: {error}", where="key lora_target_modules", fix="Write a list of names."
        ) from error
