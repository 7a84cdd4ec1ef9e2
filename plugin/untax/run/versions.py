"""Which packages decide what a node makes, and which of them are others now than when it was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from untax.manifest import package_versions

_EMBEDDING = ("torch", "transformers", "sentence-transformers", "scikit-learn", "faiss-cpu")
MATTERING: dict[str, tuple[str, ...]] = {
    "disperse": ("untax", "datasets"),
    "replay": ("untax", "axolotl", "transformers", "datasets"),
    "fisher": ("untax", "torch", "transformers", "peft"),
    "train": ("untax", "axolotl", "torch", "transformers", "trl", "peft", "accelerate", "datasets"),
    "merge": ("untax", "mergekit", "torch", "transformers"),
    "score": ("untax", "lm_eval", "torch", "transformers"),
}
"""By kind of node. A dispersal by meaning also depends on what embeds and clusters."""


def changed_versions(kind: str, manifest: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Package -> (version that it was made with, version that is here), where they differ.

    Args:
        kind: of the node.
        manifest: of its output. A package that it does not name played no part.
    """
    mattering = set(MATTERING[kind])
    if kind == "disperse" and (manifest.get("disperse") or {}).get("strategy") not in ("random", "column", "all"):
        mattering.update(_EMBEDDING)
    recorded, present = manifest.get("versions") or {}, package_versions()
    pairs = {name: (version, present.get(name, "none")) for name, version in recorded.items() if name in mattering}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def version_reason(changes: Mapping[str, tuple[str, str]]) -> str | None:
    """The changes as a reason to run again."""
    told = [f"{name} {old}, and {new} is here" for name, (old, new) in changes.items()]
    return f"it was made with {', '.join(told)}" if told else None
