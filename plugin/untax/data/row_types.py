"""Which columns hold the instruction and the response, by the dataset entry's ``type:`` or by their names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from untax.data.first_turn import MESSAGE_COLUMNS, has_turns
from untax.data.first_turn import first_turn as cut_to_first_turn
from untax.data.row_readers import (
    DIALOGUE,
    Columns,
    Dialogue,
    Pair,
    Preference,
    Reader,
    Row,
    chat_preference,
    chat_template,
    column_names,
    familiar_preference,
    free_text,
    join,
    nectar,
    segments,
)

# Which columns Axolotl's prompt strategies read for each `type:`; a name ends at its first colon.

ALPACA = Columns(("instruction", "input"), ("output",))
ORCA = Columns(("system_prompt", "question"), ("response",))
CHOICE = Columns(("question", "choices"), ("solution|explanation",))
CONVERSATIONS = Dialogue(("conversations", *MESSAGE_COLUMNS))
STRUCTURED = Columns(("input|prompt|question",), ("output|completion|answer",))
CHAT_ARGILLA = Preference(system="", history=True)

TYPES: dict[str, Reader] = {
    "alpaca": ALPACA,
    "alpaca_chat": ALPACA,
    "alpaca_chat.load_camel_ai": Columns(("message_1",), ("message_2",)),
    "alpaca_chat.load_qa": Columns(("question",), ("answer",)),
    "alpaca_instruct": ALPACA,
    "alpaca_w_system": Columns(("system", "instruction", "input"), ("output",)),
    "alpaca_w_system.load_open_orca": ORCA,
    "alpaca_w_system.load_open_orca_chatml": ORCA,
    "argilla": Preference("instruction"),
    "argilla_chat": CHAT_ARGILLA,
    "bradley_terry": Preference("input"),
    "bradley_terry.chat_template": Preference("input"),
    "chat_template": chat_template,
    "chat_template.argilla": Preference(),
    "chat_template.argilla_chat": CHAT_ARGILLA,
    "chat_template.default": chat_preference,
    "chatml": Preference(),
    "chatml.argilla_chat": Preference(system="", history=True, messages=2),
    "completion": free_text,
    "concisechoice": CHOICE,
    "context_qa": Columns(("article", "question"), ("answer",)),
    "context_qa.load_404": Columns(("article", "unanswerable_question"), ()),  # all rows get the same answer
    "context_qa.load_v2": Columns(("context", "question"), ("answer",)),
    "creative_acr.load_answer": Columns(("instruction",), ("revision",)),
    "creative_acr.load_critique": Columns(("instruction", "answer"), ("scores", "critiques")),
    "creative_acr.load_revise": Columns(("instruction", "answer", "scores", "critiques"), ("revision",)),
    "ebft_chat_multiturn": DIALOGUE,
    "ebft_opencode": STRUCTURED,
    "ebft_pretrain": Columns((), ("question|text",)),
    "ebft_reasoning": DIALOGUE,
    "ebft_strided_chat": DIALOGUE,
    "ebft_strided_structured": STRUCTURED,
    "explainchoice": CHOICE,
    "gpteacher": Columns(("instruction", "input"), ("response",)),
    "icr": Preference("input"),
    "input_output": segments,
    "intel": Preference("question"),
    "jeopardy": Columns(("question", "category"), ("answer",)),
    "llama2_chat": CONVERSATIONS,
    "llama3": Preference(),
    "llama3.argilla_chat": Preference(system="", history=True, messages=2),
    "messages": Dialogue(),
    "metharme": Columns(("prompt",), ("generation",)),
    "nectar": nectar,
    "oasst": Columns(("INSTRUCTION",), ("RESPONSE",)),
    "orcamini": ORCA,
    "passthrough": Preference(system=""),
    "pretrain": free_text,
    "prompt_pairs": Preference(),
    "pygmalion": CONVERSATIONS,
    "reflection": Columns(("instruction", "input"), ("output", "reflection", "corrected")),
    "sharegpt": CONVERSATIONS,
    "stepwise_supervised": Columns(("prompt",), ("completions",)),
    "summarizetldr": Columns(("article",), ("summary",)),
    "ultra": Preference(messages=2),
}

# Any other type: the first of these that finds both parts in a row, or else the first that finds one.
FAMILIAR: tuple[Reader, ...] = (
    familiar_preference,
    DIALOGUE,
    segments,
    Columns(
        (
            "system|system_prompt",
            "instruction|INSTRUCTION",
            "article|context",
            "prompt|question|query|message_1",
            "input",
        ),
        ("output|response|RESPONSE|completion|completions|generation|answer|message_2|summary|solution|explanation",),
    ),
    free_text,
)


# Keys that a ``type:`` with fields has only for preference rows.
PREFERENCE_KEYS = {
    key
    for name in ("prompt", "chosen", "rejected", "completion", "label")
    for key in (f"field_{name}", f"{name}_format")
}


def instruction_and_response(row: Row, entry: Mapping[str, Any], *, first_turn: bool = False) -> Pair:
    """The instruction and the response of a row, stripped; "" for a part that the row does not have.

    These are the encodings I and R of Disperse-Then-Merge, section 5.3, Table 2. The entry's ``type:`` and its field
    keys say which columns are read. A row that has none of those, or an entry of an unknown type, is read by the names
    of the row's columns. In a dialogue all user and system turns are the instruction and all assistant turns the
    response; of a preference row it is the prompt and the chosen answer. Free text is all response. Never raises.

    Args:
        row: as Arrow gives it.
        entry: of ``datasets:``, as written in the YAML or as validated by Axolotl.
        first_turn: read the row as ``first_turn`` cuts it (appendix A.1); both parts are "" when it has no such turn.
            Text of ``type: completion`` has no turns and is read as it is.

    >>> instruction_and_response({"instruction": "Add.", "input": "1 2", "output": "3"}, {"type": "alpaca"})
    ('Add.\\n1 2', '3')
    """
    if first_turn and has_turns(entry):
        return _first_turn(row)
    for reader in _stated(entry):
        pair = reader(row, entry)
        if pair is not None:
            return pair
    return _by_column_names(row, entry)


def type_by_columns(columns: Collection[str]) -> str | None:
    """The ``type:`` that a dataset without one most likely has, or None when its columns do not tell.

    >>> type_by_columns(["instruction", "input", "output", "answer"])
    'alpaca'
    """
    if {"instruction", "output"} <= set(columns):
        return "alpaca"
    return "chat_template" if set(MESSAGE_COLUMNS) & set(columns) and "chosen" not in columns else None


def _by_column_names(row: Row, entry: Mapping[str, Any]) -> Pair:
    found = [pair for reader in FAMILIAR if (pair := reader(row, entry)) and any(pair)]
    return next((pair for pair in found if all(pair)), found[0] if found else ("", ""))


def _stated(entry: Mapping[str, Any]) -> list[Reader]:
    """The readers that the entry's keys ask for, in order."""
    kind = entry.get("type")
    human, model = entry.get("field_human"), entry.get("field_model")
    own: list[Reader] = [Columns((str(human),), (str(model),))] if human and model else []
    if isinstance(kind, Mapping):
        return own + _user_defined(kind)
    name = str(kind or "").split(":")[0]
    known = (name, name.rpartition(".")[2], name.partition(".")[0])
    return own + [TYPES[part] for part in known if part in TYPES][:1]


def _user_defined(kind: Mapping[str, Any]) -> list[Reader]:
    """A ``type:`` that names its columns, with Axolotl's defaults for those it leaves out."""
    field = {key.removeprefix("field_"): str(name) for key, name in kind.items() if name and key.startswith("field_")}
    system, given = field.get("system", "system"), {key for key, value in kind.items() if value is not None}
    if given & PREFERENCE_KEYS:
        chosen = "|".join(column_names(field.get("chosen"), field.get("completion"), "chosen|completion"))
        shown = "{system}" in str(kind.get("prompt_format"))
        return [Preference(field.get("prompt", "prompt"), chosen, system if shown else "")]
    if not given:
        return []
    question = [system, field.get("instruction", "instruction")]
    if "format" not in given or "{input}" in str(kind["format"]):
        question.append(field.get("input", "input"))
    return [Columns(tuple(question), (field.get("output", "output"),))]


def _first_turn(row: Row) -> Pair:
    turn = cut_to_first_turn(row)
    if turn is None:
        return "", ""
    return join((turn["instruction"].strip(), turn["input"].strip())), turn["output"].strip()
