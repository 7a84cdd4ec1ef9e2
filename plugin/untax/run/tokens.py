"""How many tokens a node was trained on."""

from __future__ import annotations

from pathlib import Path

from untax.errors import UntaxError
from untax.manifest import read_manifest
from untax.recipes.graph import Node


def trained_tokens(node: Node, folder: Path) -> int | None:
    """What a training's manifest says; None for other nodes, and where they were not counted."""
    if node.kind != "train":
        return None
    try:
        training = (read_manifest(folder / node.outputs[0]) or {}).get("training")
    except UntaxError:
        return None
    tokens = training.get("tokens") if isinstance(training, dict) else None
    return tokens if isinstance(tokens, int) else None
