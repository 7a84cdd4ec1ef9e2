"""Manifests that were edited by hand into something else are told so, and are not taken at their word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from untax.errors import UntaxError

MAPPINGS = ("config", "inputs", "disperse", "training", "penalty", "weights", "versions", "request", "replay")
NUMBERS = {
    "training": ("rows", "rows_held_out", "steps", "loss_first", "loss_last", "train_loss", "losses_not_finite"),
    "disperse": ("rows", "rows_read", "cluster", "clusters"),
    "penalty": ("modules", "steps_penalised", "steps_before"),
    "weights": ("tensors", "deltas", "zero_deltas"),
}
"""What is counted or compared by size; each may be null."""
TEXTS = ("inputs", "versions")
"""Mappings of names to texts."""


def check_shape(manifest: Mapping[str, Any], where: object) -> None:
    """Refuse a manifest of which a part is of another kind than untax writes.

    Raises:
        UntaxError: naming that part.
    """
    for name in MAPPINGS:
        if manifest.get(name) is not None and not isinstance(manifest[name], Mapping):
            raise _unreadable(f"{name} is no mapping", where)
    for name in TEXTS:
        if name == "inputs" and manifest.get("what") == "results":
            continue  # They hold the limit of documents too, and are compared as a whole.
        if not all(isinstance(value, str) for value in (manifest.get(name) or {}).values()):
            raise _unreadable(f"{name} holds something else than texts", where)
    for name, keys in NUMBERS.items():
        section = manifest.get(name) or {}
        odd = [key for key in keys if not isinstance(section.get(key), int | float | None)]
        if odd:
            raise _unreadable(f"{name}: {odd[0]} is no number", where)
    pruned = (manifest.get("penalty") or {}).get("pruned")
    if pruned is not None and not (isinstance(pruned, Mapping) and isinstance(pruned.get("zeros", 0), int | float)):
        raise _unreadable("penalty: pruned is no mapping with a number of zeros", where)


def _unreadable(what: str, where: object) -> UntaxError:
    return UntaxError(
        f"the manifest is not readable: {what}", where=where, fix="Remove it and make the artifact again."
    )
