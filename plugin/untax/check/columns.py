"""Which columns a dataset entry's ``type:`` reads, and what of a row's answers is missing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from untax.data.pairs import PREFIX
from untax.data.row_readers import SIDE_COLUMNS, Columns, Dialogue, Preference
from untax.data.row_types import TYPES, instruction_and_response

PAIRED = ("dpo", "ipo", "orpo", "simpo")
ANSWER_COLUMNS = {"chosen": "chosen|chosen_response", "rejected": "rejected|rejected_response"}
Row = Mapping[str, Any]


def needed_columns(entry: Mapping[str, Any], rl: str | None) -> list[str]:
    """Columns without which Axolotl cannot read a row, ``a|b`` where either will do; none for a type unknown here.

    Args:
        entry: of ``datasets:``.
        rl: the preference method of the training, or None.
    """
    kind = entry.get("type")
    if isinstance(kind, Mapping):
        return _own_fields(kind, rl)
    name = str(kind or "").split(":")[0]
    if name.startswith("untax."):
        return []
    if rl:
        return _preference_columns(name, entry, rl)
    if name.partition(".")[0] == "chat_template":
        return [str(entry.get("field_messages") or "messages")]
    if name.partition(".")[0] == "completion":
        return [str(entry.get("field") or "text")]
    reader = TYPES.get(name)
    if isinstance(reader, Columns):
        return [column for column in (*reader.instruction, *reader.response) if column not in SIDE_COLUMNS]
    return [reader.columns[0]] if isinstance(reader, Dialogue) else []


def _own_fields(kind: Mapping[str, Any], rl: str | None) -> list[str]:
    """A ``type:`` that names its columns, with Axolotl's defaults; for SFT input and output may be missing there."""
    pairs = ["prompt", "completion", "label"] if rl == "kto" else ["prompt", "chosen", "rejected"]
    names = pairs if rl else ["instruction", "output"]
    return [str(kind.get(f"field_{name}") or name) for name in names]


def _preference_columns(name: str, entry: Mapping[str, Any], rl: str) -> list[str]:
    if rl == "kto":
        prompt = {"argilla": ["instruction"], "intel": ["question"], "argilla_chat": []}
        return [*prompt.get(name.rpartition(".")[2], ["prompt"]), "completion"] if name else []
    if rl not in PAIRED:
        return []
    fields = [str(entry.get(f"field_{answer}") or columns) for answer, columns in ANSWER_COLUMNS.items()]
    if name in ("chat_template", "chat_template.default") and rl != "orpo":
        fields = [str(entry.get(f"field_{answer}") or answer) for answer in ANSWER_COLUMNS]
        return [str(entry.get("field_messages") or "messages"), *fields]
    return fields if name and not name.endswith("nectar") else []


def missing_columns(needed: Collection[str], there: Collection[str]) -> list[str]:
    """Those of ``needed`` of which none is there."""
    return [names for names in needed if not set(names.split("|")) & set(there)]


@dataclass
class Answers:
    """Rows whose answers are not fit to train on, by their numbers in the source.

    Attributes:
        rows: how many were looked at.
        empty: without an answer; of pairs, without one of two.
        equal: whose two answers are the same.
        labels: how many rows of KTO are desirable.
        without: of pairs, side -> those without an answer there; Axolotl stops at them.
    """

    rows: int
    empty: list[int]
    equal: list[int]
    labels: int | None = None
    without: dict[str, list[int]] = field(default_factory=dict)


def read_answers(rows: Mapping[int, Row], entry: Mapping[str, Any], rl: str | None) -> Answers:
    """Look at the answers of some rows.

    Args:
        rows: number in the source -> row.
        entry: the dataset entry.
        rl: the preference method of the training, or None.
    """
    if rl == "kto" and any("completion" in row for row in rows.values()):
        column = _field(entry, "label") or "label"
        empty = [number for number, row in rows.items() if not instruction_and_response(row, entry)[1]]
        return Answers(len(rows), empty, [], sum(bool(row.get(column)) for row in rows.values()))
    if rl is None:
        empty = [number for number, row in rows.items() if not instruction_and_response(row, entry)[1]]
        return Answers(len(rows), empty, [])
    pairs = {number: [_answer(row, entry, which) for which in ANSWER_COLUMNS] for number, row in rows.items()}
    return Answers(
        len(rows),
        [number for number, pair in pairs.items() if not all(pair)],
        [number for number, (chosen, rejected) in pairs.items() if chosen and chosen == rejected],
        without={
            side: lacking
            for index, side in enumerate(ANSWER_COLUMNS)
            if (lacking := [number for number, pair in pairs.items() if not pair[index]])
        },
    )


def text_sides(rows: Mapping[int, Row], entry: Mapping[str, Any], rl: str | None) -> list[str]:
    """Columns of answers that hold text where the ``type:`` reads dialogues; none where it reads text, or rl is none.

    Args:
        rows: number in the source -> row.
        entry: the dataset entry.
        rl: the preference method of the training, or None.
    """
    kind = str(entry.get("type") or "")
    if kind.startswith(PREFIX):  # untax's types read what DPO's type behind their question mark reads
        return text_sides(rows, dict(parse_qsl(kind.partition("?")[2])), "dpo")
    name = kind.split(":")[0]
    if rl not in PAIRED or not (name.endswith("argilla_chat") or (rl == "orpo" and name.startswith("chat_template"))):
        return []
    columns = [_field(entry, side) or side for side in ANSWER_COLUMNS]
    return [column for column in columns if any(isinstance(row.get(column), str) for row in rows.values())]


def _answer(row: Row, entry: Mapping[str, Any], which: str) -> str:
    """The chosen or the rejected answer as text: of a dialogue its last turn."""
    columns = _field(entry, which) or ANSWER_COLUMNS[which]
    plain = {key: value for key, value in entry.items() if key not in ("field_chosen", "field_completion")}
    pair = Preference(chosen=columns)(row, plain)
    return pair[1] if pair else ""


def _field(entry: Mapping[str, Any], which: str) -> str | None:
    kind = entry.get("type")
    named = kind.get(f"field_{which}") if isinstance(kind, Mapping) else entry.get(f"field_{which}")
    return str(named) if named else None
