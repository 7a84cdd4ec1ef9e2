"""Shares and quantiles against a list in which every row stands for itself."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untax.check.axolotl_rows import Tokens
from untax.check.lengths import QUANTILES, Part, measure

SOURCES = st.lists(
    st.tuples(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=8), st.integers(1, 4)),
    min_size=1,
    max_size=3,
)


@given(SOURCES, st.integers(1, 50), st.sampled_from(["drop", "truncate"]), st.booleans())
def test_against_whole_lists(
    sources: list[tuple[list[tuple[int, int]], int]], limit: int, strategy: str, preference: bool
) -> None:
    """Rows that stand for n rows each are as n rows."""
    parts = [
        Part([Tokens(length, length, min(start, length)) for length, start in rows], each) for rows, each in sources
    ]
    every = [row for part in parts for row in part.tokens for _ in range(int(part.each))]
    found = measure(parts, limit=limit, strategy=strategy, preference=preference)
    ordered = sorted(row.length for row in every)
    assert found.rows == len(every)
    for quantile in QUANTILES:
        assert found.quantiles[quantile] == ordered[math.ceil(quantile * len(every) - 1e-9) - 1]
    assert found.longest == ordered[-1]
    assert found.too_long == pytest.approx(sum(row.length > limit for row in every) / len(every))
    if strategy == "drop":
        trained = [row for row in every if row.length <= limit]
    else:
        trained = [row for row in every if row.length <= limit or not preference or row.start < limit]
    assert found.kept == len(trained)
    assert found.tokens == sum(min(row.length, limit) for row in trained)
    silent = [row for row in trained if row.start >= min(row.length, limit)]
    assert found.without_answer == pytest.approx(len(silent) / len(every))


def test_pairs_count_both_sides() -> None:
    """Two rows of which one has sides of 10 and 6 tokens; a cluster has half of them."""
    part = Part([Tokens(10, 16, 4), Tokens(30, 60, 4)], 1.0)
    found = measure([part], limit=20, strategy="drop", share=0.5, preference=True)
    assert (found.rows, found.kept, found.tokens) == (1, 0, 8)
    assert measure([part], limit=20, strategy="truncate", preference=True).tokens == 16 + 40


def test_no_rows() -> None:
    found = measure([], limit=10, strategy="drop")
    assert (found.rows, found.kept, found.tokens, found.too_long, found.longest) == (0, 0, 0, 0, 0)
