"""Estimates and standard errors from per-sample scores: pure functions, no model."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from untax.errors import UntaxError

Sample = Mapping[str, Any]


def ratio(values: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """Sum of values over sum of weights, with the standard error of a ratio estimator.

    For NLL per token, values are the samples' summed NLL and weights their tokens: every token counts the same, and
    samples, not tokens, are what was drawn independently. The error is linearised (Cochran, Sampling Techniques,
    eq. 6.13): the residuals v - R*w instead of the values, n/(n-1) for the degree of freedom.

    Returns:
        the ratio and its standard error; the error of a single sample is NaN.

    Raises:
        UntaxError: there are no samples, their numbers differ, or a weight is not positive.
    """
    if not values or len(values) != len(weights) or any(not weight > 0 for weight in weights):
        raise UntaxError(
            f"{len(values)} values with {len(weights)} weights have no weighted mean.",
            fix="Score at least one sample; each needs a weight above zero.",
        )
    count, total = len(values), math.fsum(weights)
    estimate = math.fsum(values) / total
    if count == 1:
        return estimate, math.nan
    squares = math.fsum((value - estimate * weight) ** 2 for value, weight in zip(values, weights, strict=True))
    return estimate, math.sqrt(squares * count / (count - 1)) / total


def accuracy(values: Sequence[float], groups: Sequence[Hashable] | None = None) -> tuple[float, float]:
    """The mean of 0/1 scores, with its standard error.

    Args:
        values: one score per sample.
        groups: what each sample shares with others (its prompt, say): samples of one group are not independent, so
            the error is taken between groups. Without groups it is the usual sqrt(p(1-p)/(n-1)).
    """
    sums: dict[Hashable, float] = {}
    sizes: dict[Hashable, int] = {}
    for value, group in zip(values, groups if groups is not None else range(len(values)), strict=True):
        sums[group] = sums.get(group, 0.0) + value
        sizes[group] = sizes.get(group, 0) + 1
    return ratio(list(sums.values()), list(sizes.values()))


def nll_per_token(samples: Sequence[Sample]) -> tuple[float, float]:
    """NLL per token in nats, with its standard error, from samples with ``nll`` and ``tokens``."""
    return ratio([sample["nll"] for sample in samples], [sample["tokens"] for sample in samples])


def paired_rise(arm: Sequence[Sample], base: Sequence[Sample]) -> tuple[float, float]:
    """How much higher the arm's NLL per token is than the base's on the same documents, with its standard error.

    Differences are taken document by document, so that what makes a document hard for both cancels.

    Raises:
        UntaxError: the two were not scored on the same documents.
    """
    by_id = {sample["doc_id"]: sample for sample in base}
    ids = [sample["doc_id"] for sample in arm]
    if len(by_id) != len(base) or len(set(ids)) != len(ids) or set(ids) != set(by_id):
        raise UntaxError(
            f"Two models were scored on different items ({len(arm)} and {len(base)}): they cannot be compared.",
            fix="Score both again with the same suite and the same --limit.",
        )
    for sample in arm:
        other = by_id[sample["doc_id"]]
        if any(sample.get(name) != other.get(name) for name in ("tokens", "doc_hash")):
            raise UntaxError(
                f"Item {sample['doc_id']} is not the same in both results: they cannot be compared.",
                fix="Score both again with the same version of the suite.",
            )
    rises = [sample["nll"] - by_id[sample["doc_id"]]["nll"] for sample in arm]
    return ratio(rises, [sample["tokens"] for sample in arm])
