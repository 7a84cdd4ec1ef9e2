"""How long a training takes: its floating-point operations, divided by what a GPU does of them in practice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from untax.recipes.cost.architecture import Architecture
from untax.recipes.cost.hardware import Gpu
from untax.recipes.cost.methods import method
from untax.recipes.cost.trained import trained

UTILISATION = 0.35
"""The share of a GPU's peak that a training reaches; ours. Padding, small batches and 4-bit weights lower it."""


def training_flops(architecture: Architecture, tokens: float, keys: Mapping[str, Any], *, length: float) -> float:
    """Operations of a training, two for each product and sum.

    A forward pass is 2 for each weight that a token is multiplied by, and 4 for each of the tokens before it and each
    number of its queries. A backward pass is as much again for the activations, and for trained weights once more.
    Gradient checkpointing computes the layers' forward a second time.

    Args:
        architecture: of the base.
        tokens: what is trained on in all: every epoch, and both answers of a pair.
        keys: Axolotl's.
        length: tokens of a row, on average.

    Raises:
        UntaxError: nothing is known of this ``rl``.
    """
    what, how = trained(architecture, keys), method(keys)
    scores = 2 * length * architecture.queries * architecture.layers  # causal: half of all pairs of tokens
    forward = 2 * architecture.multiplied() + scores
    # Derivatives of the scores go to queries as well as keys, of the weighted sum to scores as well as values.
    backward = 2 * architecture.multiplied() + 2 * scores
    backward += 2 * architecture.multiplied() if what.full else 6 * what.parameters(architecture)
    again = forward - 2 * architecture.embedding if keys.get("gradient_checkpointing") else 0
    return tokens * (forward * (1 + how.more_forwards) + again + backward)


def training_hours(
    architecture: Architecture,
    tokens: float,
    keys: Mapping[str, Any],
    gpu: Gpu,
    *,
    length: float | None = None,
    gpus: int = 1,
    utilisation: float = UTILISATION,
) -> float:
    """Hours of a training.

    Args:
        architecture: of the base.
        tokens: what is trained on in all: every epoch, and both answers of a pair.
        keys: Axolotl's.
        gpu: what it runs on.
        length: tokens of a row on average, where known; else ``sequence_len``.
        gpus: how many it runs on.
        utilisation: the share of the peak that is reached.

    Raises:
        UntaxError: nothing is known of this ``rl``.
    """
    mean = float(length or keys.get("sequence_len") or 512)
    return training_flops(architecture, tokens, keys, length=mean) / (gpu.flops * utilisation * gpus) / 3600


def training_steps(rows: int, keys: Mapping[str, Any], *, gpus: int = 1) -> int:
    """Optimizer steps over ``rows`` rows (or packed sequences), for all epochs or as ``max_steps`` says.

    The last batch and the last accumulation of an epoch may be smaller, and count.
    """
    limit = int(_number(keys.get("max_steps"), 0))
    micro = int(_number(keys.get("micro_batch_size"), 1)) * gpus
    batches = math.ceil(rows / max(micro, 1))
    each = math.ceil(batches / max(int(_number(keys.get("gradient_accumulation_steps"), 1)), 1))
    steps = math.ceil(each * _number(keys.get("num_epochs"), 1))
    return min(steps, limit) if limit > 0 else steps


def warmup_steps(steps: int, keys: Mapping[str, Any]) -> int:
    """Steps for which the learning rate rises, of ``steps``, as Axolotl reads its keys."""
    if keys.get("warmup_steps") is not None:
        found = int(_number(keys["warmup_steps"], 0))
    elif keys.get("warmup_ratio") is not None:
        found = int(_number(keys["warmup_ratio"], 0) * steps)
    else:
        found = min(int(0.03 * steps), 100)
    return 2 if found == 1 else found


def _number(value: Any, default: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default
