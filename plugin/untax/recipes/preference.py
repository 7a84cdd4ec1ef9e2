"""The preference methods: the Axolotl keys that are theirs, and what their datasets must be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from untax.recipes.papers import Settings


@dataclass(frozen=True)
class Method:
    """A preference method.

    Attributes:
        name: as an arm calls it.
        rl: as Axolotl calls it.
        keys: the Axolotl keys that only such methods have.
        reference_model: whether a frozen reference is compared with.
        paired: whether a row holds a chosen and a rejected answer.
        defaults: its settings where the recipe has none.
    """

    name: str
    rl: str
    keys: tuple[str, ...]
    reference_model: bool
    paired: bool
    defaults: Settings = field(default_factory=dict)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("dpo", "dpo", ("rl_beta", "dpo_label_smoothing"), True, True),
        Method("orpo", "orpo", ("orpo_alpha",), False, True),
        Method("kto", "kto", ("rl_beta", "kto_desirable_weight", "kto_undesirable_weight"), True, False),
        Method("simpo", "simpo", ("rl_beta", "simpo_gamma", "cpo_alpha"), False, True),
    )
}


def entry_for(method: str, entry: dict[str, Any]) -> dict[str, Any]:
    """A dataset entry of pairs as ``method`` needs it."""
    return entry


def entry_problems(method: str, entry: dict[str, Any]) -> list[str]:
    """What is wrong with a dataset entry for ``method``."""
    return []
