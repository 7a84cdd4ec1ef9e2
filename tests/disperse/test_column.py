"""The strategy ``column``: values stay whole, sizes are near each other, and the order of rows decides nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora import corpus_of
from untax.disperse.column import column_clusters, column_values, pack, value_of
from untax.errors import UntaxError


def rows(values: list[Any], name: str = "kind") -> list[dict[str, Any]]:
    return [{"output": f"row {index}", name: value} for index, value in enumerate(values)]


def test_as_many_values_as_clusters() -> None:
    found = column_clusters(corpus_of(rows(["b", "a", "b", "c", "b", "c"])), clusters=3, column="kind")
    assert found.clusters.tolist() == [1, 0, 1, 2, 1, 2], "within a dataset by the value's text"
    assert found.facts == {"values": {"a": 0, "b": 1, "c": 2}, "different_values": 3}


def test_an_appended_dataset_leaves_the_others_their_numbers() -> None:
    old = [rows(["b", "b", "b"]), rows(["a", "z", "z"])]
    before = column_clusters(corpus_of(*old), clusters=3, column="kind").clusters.tolist()
    assert before == [0, 0, 0, 1, 2, 2]
    new = corpus_of(*old, rows(["0"] * 50 + ["b"]))
    assert column_clusters(new, clusters=4, column="kind").clusters.tolist() == [*before, *[3] * 50, 0]


def test_many_appended_sources() -> None:
    """The tenth entry comes after the second, though its text does not."""
    sources = [[{"output": f"{index} {row}"} for row in range(1 + index % 3)] for index in range(12)]
    found = column_clusters(corpus_of(*sources), clusters=12, column="source").clusters.tolist()
    assert found == [index for index in range(12) for _ in range(1 + index % 3)]


@given(
    kinds=st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6), min_size=1, max_size=4),
    new=st.lists(st.sampled_from("ghij"), min_size=1, max_size=30),
)
def test_clusters_of_one_value_each_keep_their_numbers(kinds: list[list[str]], new: list[str]) -> None:
    old = [rows(some) for some in kinds]
    values = {kind for some in kinds for kind in some}
    if len(values) < 2:
        return
    before = column_clusters(corpus_of(*old), clusters=len(values), column="kind").clusters
    after = column_clusters(corpus_of(*old, rows(new)), clusters=len(values) + len(set(new)), column="kind").clusters
    assert after[: len(before)].tolist() == before.tolist()
    assert min(after[len(before) :]) == len(values)


def test_packing_by_hand() -> None:
    assert pack({"a": 7, "b": 5, "c": 4, "d": 3, "e": 1}, 2) == {"a": 0, "b": 1, "c": 1, "d": 0, "e": 1}


@given(
    values=st.lists(st.sampled_from(["a", "b", "c", "d", "e", None, "É", ""]), min_size=2, max_size=60),
    clusters=st.integers(2, 4),
    seed=st.integers(0, 9),
)
def test_values_stay_whole_whatever_the_order(values: list[str | None], clusters: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(values))
    corpora = corpus_of(rows(values)), corpus_of(rows([values[place] for place in order]))
    if len(set(values)) < clusters:
        with pytest.raises(UntaxError, match="cannot be filled"):
            column_clusters(corpora[0], clusters=clusters, column="kind")
        return
    one, two = (column_clusters(corpus, clusters=clusters, column="kind").clusters for corpus in corpora)
    assert one[order].tolist() == two.tolist()
    assert len({(value, int(cluster)) for value, cluster in zip(values, one, strict=True)}) == len(set(values))
    sizes = np.bincount(one, minlength=clusters)
    assert sizes.min() > 0
    # Greedy packing: no cluster exceeds the smallest by more than its smallest group.
    largest = max(values.count(value) for value in set(values))
    assert sizes.max() - sizes.min() <= largest


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([1, 2, None], ["1", "2", "(null)"]),
        ([1.0, 2.5, 1.0], ["1", "2.5"]),
        ([True, False, True], ["True", "False"]),
        (["x", "y", "x"], ["x", "y"]),
        (["(null)", None], ['"(null)"', "(null)"]),
    ],
)
def test_kinds_of_values(values: list[Any], texts: list[str]) -> None:
    corpus = corpus_of(rows(values))
    codes, found = column_values(corpus, "kind")
    assert found == texts
    assert [found[code] for code in codes] == [value_of(corpus, row, "kind") for row in range(len(values))]


def test_source_is_the_entry_where_rows_have_no_such_column() -> None:
    corpus = corpus_of(rows(["x"] * 4), rows(["here", "there", "here"], name="source"))
    _, found = column_values(corpus, "source")
    assert found == ["0:s0.jsonl", "here", "there"]
    assert value_of(corpus, 1, "source") == "0:s0.jsonl"
    assert value_of(corpus, 5, "source") == "there"


@pytest.mark.parametrize(
    ("corpus", "column", "said"),
    [
        (corpus_of(rows(["x", "y"])), "kinds", "no column 'kinds'. Did you mean 'kind'?"),
        (corpus_of(rows(["x", "y"]), rows(["z"], name="other")), "kind", "no column 'kind'"),
        (corpus_of(rows([["x"], ["y"]])), "kind", "list"),
        (corpus_of(rows([{"a": 1}, {"a": 2}])), "kind", "struct"),
        (corpus_of(rows(["x", "x", "x"])), "kind", "1 values of kind: x"),
    ],
)
def test_what_is_refused(corpus: Any, column: str, said: str) -> None:
    with pytest.raises(UntaxError) as error:
        column_clusters(corpus, clusters=2, column=column)
    assert said in str(error.value)
    assert "disperse_column" in str(error.value.where)
    assert error.value.fix


def test_many_rows() -> None:
    """Many rows by one column, in batches."""
    from datasets import Dataset

    from untax.data.corpus import Corpus, Source

    many = Dataset.from_dict({"kind": [f"k{index % 5}" for index in range(100_000)], "output": ["o"] * 100_000})
    found = column_clusters(Corpus((Source({"path": "p"}, many),)), clusters=5, column="kind")
    assert np.bincount(found.clusters).tolist() == [20_000] * 5
