"""Weighted averages and sums of deltas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from untax.errors import UntaxError
from untax.merge.method import Block, Method, Parameter, Values

if TYPE_CHECKING:
    import torch


def _combined(block: Block, coefficients: tuple[float, ...]) -> torch.Tensor:
    weights = block.deltas.new_tensor(coefficients)
    return (weights @ block.deltas.flatten(1)).view_as(block.deltas[0])


def average(values: Values) -> tuple[tuple[float, ...], float]:
    """(w_k / sum of w, 1), or (w_k, sum of w) without normalisation: the base is in every model."""
    weights = values["weight"]
    if not values["normalize"]:
        return weights, math.fsum(weights)
    total = weight_sum(weights)
    return tuple(weight / total for weight in weights), 1.0


def summed(values: Values) -> tuple[tuple[float, ...], float]:
    """(lambda * w_k, 1), divided by the sum of w with ``normalize``."""
    weights = values["weight"]
    divisor = weight_sum(weights) if values["normalize"] else 1.0
    return tuple(values["lambda"] * weight / divisor for weight in weights), 1.0


def weight_sum(weights: Sequence[float], *, where: object = "parameters: weight") -> float:
    """What weights are divided by to be normalised.

    Raises:
        UntaxError: it is 0.
    """
    total = math.fsum(weights)
    if abs(total) < 1e-8:
        raise UntaxError(
            f"The weights sum to {total:g} and cannot be normalised.",
            where=where,
            fix="Change a weight, or say `normalize: false`.",
        )
    return total


linear = Method(
    "linear",
    (Parameter("weight", float, per_model=True, counts_base=True), Parameter("normalize", bool, default=True)),
    merge=lambda block: _combined(block, average(block.values)[0]),
    coefficients=average,
    base=False,
    base_is_model=True,
    url="https://arxiv.org/abs/2203.05482",
)

TASK_PARAMETERS = (
    Parameter("weight", float, per_model=True),
    Parameter("density", float, per_model=True, default=1.0),
    Parameter("lambda", float, default=1.0),
    Parameter("int8_mask", bool, default=False),
)
"""What mergekit's family of task arithmetic has in common; ``int8_mask`` concerns mergekit's memory only."""

task_arithmetic = Method(
    "task_arithmetic",
    (*TASK_PARAMETERS, Parameter("normalize", bool, default=False), Parameter("rescale", bool, default=False)),
    merge=lambda block: _combined(block, summed(block.values)[0]),
    coefficients=summed,
    url="https://arxiv.org/abs/2212.04089",
)
