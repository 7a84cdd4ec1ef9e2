"""In what numbers a training holds and computes: bytes, by its Axolotl keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from untax.recipes.cost.architecture import Architecture

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per weight in 4 bits: a byte of scale for each 64 weights, and four bytes for each 256 of those scales."""


def width(keys: Mapping[str, Any]) -> int:
    """Bytes of a number in matrix products, and of a weight that is not quantised: 2 in half precision, else 4."""
    return 2 if any(keys.get(key) for key in ("bf16", "bfloat16", "fp16", "float16")) else 4


def weight_bytes(architecture: Architecture, keys: Mapping[str, Any]) -> int:
    """Bytes of the loaded base: only the linear layers of the decoder are quantised."""
    linear = architecture.layers * sum(layer.size for layer in architecture.linears)
    each = NF4 if keys.get("load_in_4bit") else 1.0 if keys.get("load_in_8bit") else float(width(keys))
    return round(linear * each) + (architecture.parameters() - linear) * width(keys)


def state_bytes(keys: Mapping[str, Any], parameter: int) -> int:
    """Bytes of the optimizer's state for each trained weight.

    Args:
        keys: Axolotl's.
        parameter: bytes of a trained weight, which the states are as wide as.
    """
    name = str(keys.get("optimizer") or "adamw_torch_fused")
    if "8bit" in name:
        return 2
    if "4bit" in name:
        return 1
    if "adafactor" in name:
        return 0
    states = 1 if name.startswith(("sgd", "lion", "muon", "rmsprop", "adagrad")) else 2
    return states * parameter
