"""Some rows of a dataset entry, the same ones each time, read as Axolotl reads them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from untax.data.corpus import ROW_KEYS, Source, read_corpus
from untax.data.first_turn import first_turns, has_turns

if TYPE_CHECKING:
    from datasets import Dataset

SEED = 0


@dataclass(frozen=True)
class Sample:
    """Some rows of one source.

    Attributes:
        source: where they come from; an entry with several names is several.
        entry: as Axolotl is given the rows.
        numbers: theirs in the source, ascending.
        rows: they themselves, in memory.
        without_turn: how many of those looked at have no complete first turn, and are not trained on.
    """

    source: Source
    entry: dict[str, Any]
    numbers: list[int]
    rows: Dataset
    without_turn: int = 0

    @property
    def total(self) -> int:
        """Rows of the source."""
        return len(self.source.rows)

    @property
    def looked_at(self) -> int:
        """How many of them were looked at."""
        return len(self.numbers) + self.without_turn

    def by_number(self) -> dict[int, Mapping[str, Any]]:
        """Number in the source -> row."""
        plain = self.rows.with_format("arrow")[:].to_pylist() if len(self.rows) else []
        return dict(zip(self.numbers, plain, strict=True))


def take_samples(entry: Mapping[str, Any], keys: Mapping[str, Any], rows: int) -> list[Sample]:
    """Up to ``rows`` rows of each source of an entry, drawn over all of it; the first ones are always there.

    Args:
        entry: of ``datasets:``.
        keys: of the YAML.
        rows: how many.

    Raises:
        UntaxError: the dataset cannot be read.
    """
    needed = {key: keys[key] for key in ("seed", "hf_use_auth_token") if keys.get(key) is not None}
    corpus = read_corpus({**needed, "datasets": [dict(entry)], "dataset_num_proc": 1})
    return [_sample(source, bool(keys.get("disperse_first_turn")), rows) for source in corpus.sources]


def _sample(source: Source, first_turn: bool, rows: int) -> Sample:
    from datasets import Dataset

    numbers = _numbers(len(source.rows), rows)
    table = source.rows.with_format("arrow")[numbers]
    entry = dict(source.entry)
    if not (first_turn and has_turns(entry)):
        return Sample(source, entry, numbers, Dataset(table, source.rows.info))
    cut = [(number, first_turns(table.slice(index, 1))) for index, number in enumerate(numbers)]
    kept = [(number, turn) for number, turn in cut if len(turn)]
    turns = Dataset.from_list([turn.to_pylist()[0] for _, turn in kept])
    entry = {key: value for key, value in entry.items() if key not in ROW_KEYS}
    return Sample(source, entry, [number for number, _ in kept], turns, len(cut) - len(kept))


def _numbers(total: int, wanted: int) -> list[int]:
    if total <= wanted:
        return list(range(total))
    first = min(wanted, 10)
    return [*range(first), *sorted(random.Random(SEED).sample(range(first, total), wanted - first))]
