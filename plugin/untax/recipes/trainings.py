"""The Axolotl keys of each kind of training, from the recipe's sections: which is laid over which."""

from __future__ import annotations

from typing import Any

from untax.recipes import preference
from untax.recipes.checks import FREE_PENALTY_KEYS
from untax.recipes.preference import METHODS
from untax.recipes.spec import RunSpec

METHOD_KEYS = frozenset(key for method in METHODS.values() for key in method.keys)
"""Keys that mean another thing, or nothing, for another preference method."""


def sft_keys(spec: RunSpec) -> dict[str, Any]:
    """The recipe's keys of every SFT, without those that only say how a penalty works."""
    return {key: value for key, value in _over(spec, spec.training.sft).items() if key not in FREE_PENALTY_KEYS}


def penalty_keys(spec: RunSpec) -> dict[str, Any]:
    """How a penalty works, where a training has one."""
    return {key: value for key, value in _over(spec, spec.training.sft).items() if key in FREE_PENALTY_KEYS}


def preference_keys(spec: RunSpec, method: str) -> dict[str, Any]:
    """The recipe's keys of a preference training.

    What ``training.preference`` says of the recipe's own method (its beta, say) does not hold for another one, which
    has its own defaults instead; nor do keys with which Axolotl would not start the other method.
    """
    known = METHODS[method]
    shared = spec.training.preference
    if method != spec.method:
        lost = METHOD_KEYS | set(known.refused)
        own = {key: setting.value for key, setting in known.defaults.items()}
        shared = {**own, **{key: value for key, value in shared.items() if key not in lost}}
    keys = _over(spec, {**shared, **getattr(spec.training, method)})
    keys = {key: value for key, value in keys.items() if key not in FREE_PENALTY_KEYS}
    return {**keys, "rl": known.rl}


def preference_entries(spec: RunSpec, method: str) -> list[dict[str, Any]] | None:
    """The pairs of a method as the recipe names them, or None when it names none."""
    return spec.preference.get(method) if isinstance(spec.preference, dict) else spec.preference


def preference_datasets(spec: RunSpec, method: str) -> list[dict[str, Any]] | None:
    """The pairs as the method needs them; those that are named for the method alone stay as they are."""
    entries = preference_entries(spec, method)
    if entries is None or isinstance(spec.preference, dict):
        return entries
    return [preference.entry_for(method, entry) for entry in entries]


def _over(spec: RunSpec, keys: dict[str, Any]) -> dict[str, Any]:
    return {**keys, **spec.axolotl}
