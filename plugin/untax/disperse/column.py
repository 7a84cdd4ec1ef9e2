"""The strategy ``column``: rows with the same value of a column together, such as all of one source."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from untax.disperse.strategy import Dispersal
from untax.errors import UntaxError, near_names

if TYPE_CHECKING:
    import pyarrow as pa

    from untax.data.corpus import Corpus, Source

SOURCE = "source"
"""The column of that name where rows have one, else the entry of ``datasets:`` that a row came from."""
NULL = "(null)"
BATCH = 10_000
SHOWN = 10
MOST_LISTED = 1000
"""Values that the manifest lists with their clusters; of a column of identifiers it says only how many there are."""


def column_clusters(corpus: Corpus, *, clusters: int, column: str) -> Dispersal:
    """Values are never split: as many as clusters get one each, more are packed so that sizes are near each other.

    The largest group goes into the smallest cluster so far (equal ones by the value's text). Clusters are then numbered
    by the first dataset in which one of their values appears (in one dataset by the value's text): a dataset that is
    appended, with new values for as many more clusters, leaves the others their numbers. The order of the rows within a
    dataset decides nothing.

    Raises:
        UntaxError: a source has no such column, its values are lists or structs, or there are fewer than ``clusters``.
    """
    codes, values = column_values(corpus, column)
    first = first_sources(corpus, codes, len(values))
    sizes = np.bincount(codes, minlength=len(values))
    if len(values) < clusters:
        raise UntaxError(
            f"{clusters} clusters cannot be filled by the {len(values)} values of {column}: {_listed(values)}.",
            where="key disperse_column",
            fix=f"Set disperse_clusters: {len(values)}" + (" at most" if len(values) > 2 else "")
            if len(values) > 1
            else "Name a column with more values, or use disperse_strategy: random.",
        )
    packed = numbered(
        pack(dict(zip(values, sizes.tolist(), strict=True)), clusters), dict(zip(values, first.tolist(), strict=True))
    )
    of_code = np.array([packed[value] for value in values], dtype=np.int32)
    shown = dict(sorted(packed.items())) if len(packed) <= MOST_LISTED else {}
    return Dispersal(of_code[codes], {"values": shown, "different_values": len(packed)})


def pack(sizes: dict[str, int], clusters: int) -> dict[str, int]:
    """Value -> cluster for groups of the given sizes, the largest first into the cluster with the fewest rows.

    >>> pack({"a": 5, "b": 4, "c": 3}, 2)
    {'a': 0, 'b': 1, 'c': 1}
    """
    filled = [0] * clusters
    packed = {}
    for value in sorted(sizes, key=lambda value: (-sizes[value], value)):
        smallest = filled.index(min(filled))
        packed[value] = smallest
        filled[smallest] += sizes[value]
    return packed


def numbered(packed: dict[str, int], first: dict[str, int]) -> dict[str, int]:
    """Value -> cluster, with the clusters numbered by the first of their values: by dataset, then by text.

    >>> numbered({"a": 1, "b": 0, "c": 1}, {"a": 0, "b": 0, "c": 1})
    {'a': 0, 'b': 1, 'c': 0}
    """
    order = dict.fromkeys(packed[value] for value in sorted(packed, key=lambda value: (first[value], value)))
    numbers = {cluster: number for number, cluster in enumerate(order)}
    return {value: numbers[cluster] for value, cluster in packed.items()}


def first_sources(corpus: Corpus, codes: np.ndarray, count: int) -> np.ndarray:
    """For each of ``count`` values the first source that has it, shape (count,)."""
    first = np.full(count, len(corpus.sources), dtype=np.int64)
    start = 0
    for index, source in enumerate(corpus.sources):
        own = np.unique(codes[start : start + len(source.rows)])
        first[own] = np.minimum(first[own], index)
        start += len(source.rows)
    return first


def column_values(corpus: Corpus, column: str) -> tuple[np.ndarray, list[str]]:
    """Each row's value as a number, shape (N,), and the values' texts by number; null is a value too.

    Raises:
        UntaxError: a source has no such column, or its values are lists or structs.
    """
    numbers: dict[str, int] = {}
    codes = np.empty(len(corpus), dtype=np.int32)
    start = 0
    for values in _chunks(corpus, column):
        encoded = values.dictionary_encode(null_encoding="encode")
        own = [numbers.setdefault(_said(value), len(numbers)) for value in encoded.dictionary.to_pylist()]
        codes[start : start + len(values)] = np.array(own, dtype=np.int32)[encoded.indices.to_numpy()]
        start += len(values)
    return codes, list(numbers)


def value_of(corpus: Corpus, row: int, column: str) -> str:
    """The text of one row's value."""
    for index, source in enumerate(corpus.sources):
        if row < len(source.rows):
            named = column in source.rows.column_names
            return _said(source.rows[row][column]) if named else _entry(index, source)
        row -= len(source.rows)
    raise IndexError(row)


def _chunks(corpus: Corpus, column: str) -> Iterator[pa.Array]:
    import pyarrow as pa

    for index, source in enumerate(corpus.sources):
        if column not in source.rows.column_names and column == SOURCE:
            yield pa.repeat(_entry(index, source), len(source.rows))
            continue
        _refuse_missing(source, column)
        for batch in source.rows.select_columns([column]).with_format("arrow").iter(batch_size=BATCH):
            values = batch[column].combine_chunks()
            _refuse_nested(source, column, values.type)
            yield values


def _entry(index: int, source: Source) -> str:
    return f"{index}:{source.name}"


def _said(value: object) -> str:
    """1 and 1.0 are one value: a fraction elsewhere in the column makes the one the other."""
    if value is None:
        return NULL
    if value == NULL:
        return f'"{NULL}"'
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _refuse_missing(source: Source, column: str) -> None:
    if column not in source.rows.column_names:
        raise UntaxError(
            f"The rows have no column '{column}'. {near_names(column, source.rows.column_names)}",
            where=f"key disperse_column, dataset {source.name}",
            fix="Name a column that every dataset has, or `source`.",
        )


def _refuse_nested(source: Source, column: str, kind: pa.DataType) -> None:
    import pyarrow as pa

    if pa.types.is_nested(kind):
        raise UntaxError(
            f"The column '{column}' holds {kind}, and rows are told apart by text, numbers, times and true or false.",
            where=f"key disperse_column, dataset {source.name}",
            fix="Name another column.",
        )


def _listed(values: list[str]) -> str:
    shown = sorted(values)[:SHOWN]
    return ", ".join(shown) + (", ..." if len(values) > SHOWN else "")
