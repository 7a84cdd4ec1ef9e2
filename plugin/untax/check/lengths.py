"""How long the rows of a training are, and what becomes of those that are too long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from untax.check.axolotl_rows import Tokens

QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Part:
    """Rows that were looked at, and how many rows each of them stands for."""

    tokens: Sequence[Tokens]
    each: float


@dataclass(frozen=True)
class Lengths:
    """Of one training's rows.

    Attributes:
        rows: training rows in an epoch before any is left out, estimated where not all were looked at.
        looked_at: how many were.
        quantiles: tokens of a row that so many rows do not exceed; of a pair those of its longer side.
        longest: tokens of the longest row that was looked at.
        limit: ``sequence_len``.
        strategy: what Axolotl does with longer ones: ``drop``, ``truncate`` or ``raise``.
        too_long: the share of rows that are longer.
        left_out: the share of rows that are not trained on at all.
        without_answer: the share of rows in which no token is left to train on.
        tokens: tokens of an epoch as they are trained on; of a pair both sides.
    """

    rows: int
    looked_at: int
    quantiles: dict[float, int]
    longest: int
    limit: int
    strategy: str
    too_long: float
    left_out: float
    without_answer: float
    tokens: int

    @property
    def kept(self) -> int:
        """Rows of an epoch that are trained on."""
        return round(self.rows * (1 - self.left_out))

    @property
    def mean(self) -> float:
        """Tokens of a sequence, on average."""
        return self.tokens / max(self.kept, 1)


def measure(
    parts: Sequence[Part], *, limit: int, strategy: str, share: float = 1.0, preference: bool = False
) -> Lengths:
    """The lengths of a training's rows.

    Args:
        parts: rows of each source.
        limit: ``sequence_len``.
        strategy: ``excess_length_strategy``.
        share: of the rows that the training has, of a cluster for one.
        preference: whether they are of a preference training, which leaves out what has no room for an answer.
    """
    weighted = [(row, part.each) for part in parts for row in part.tokens]
    total = math.fsum(weight for _, weight in weighted)

    def share_of(chosen: Sequence[tuple[Tokens, float]]) -> float:
        return math.fsum(weight for _, weight in chosen) / total if total else 0.0

    long = [(row, weight) for row, weight in weighted if row.length > limit]
    out = long if strategy != "truncate" else [one for one in long if preference and one[0].start >= limit]
    gone = {id(row) for row, _ in out}
    trained = [(row, weight) for row, weight in weighted if id(row) not in gone]
    silent = [(row, weight) for row, weight in trained if row.start >= min(row.length, limit)]
    # Of a pair both sides are cut; none is longer than the longer one.
    tokens = math.fsum(weight * min(row.total, row.total * limit / max(row.length, 1)) for row, weight in trained)
    return Lengths(
        rows=round(total * share),
        looked_at=len(weighted),
        quantiles={quantile: _quantile(weighted, quantile) for quantile in QUANTILES},
        longest=max((row.length for row, _ in weighted), default=0),
        limit=limit,
        strategy=strategy,
        too_long=share_of(long),
        left_out=share_of(out),
        without_answer=share_of(silent),
        tokens=round(tokens * share),
    )


def _quantile(weighted: Sequence[tuple[Tokens, float]], quantile: float) -> int:
    """The least length that the wanted share of rows does not exceed."""
    ordered = sorted((row.length, weight) for row, weight in weighted)
    total, reached = math.fsum(weight for _, weight in ordered), 0.0
    for length, weight in ordered:
        reached += weight
        if reached >= quantile * total - 1e-9 * total:
            return length
    return 0
