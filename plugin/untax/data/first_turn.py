"""The first turn of a dialogue as one instruction and one output (Disperse-Then-Merge, appendix A.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

TURN_KEYS = ("instruction", "input", "output")
MESSAGE_COLUMNS = ("messages", "conversations", "conversation")
ROLE_KEYS = ("role", "from")
TEXT_KEYS = ("content", "value")
USER_ROLES = {"user", "human", "prompter"}
ASSISTANT_ROLES = {"assistant", "gpt", "model", "bot", "chatgpt"}


def first_turn(row: Mapping[str, Any]) -> dict[str, str] | None:
    """``{"instruction", "input", "output"}`` of a row, or None when it has no complete first turn.

    Rows with an ``instruction`` are one turn already. In a dialogue a leading system message goes in front of the
    instruction, after which the first user message and the assistant's answer to it count. A null among the messages
    is none.

    >>> first_turn({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]})
    {'instruction': 'Hi', 'input': '', 'output': 'Hello'}
    """
    for column in MESSAGE_COLUMNS:
        messages = _messages(row.get(column))
        if messages:
            return _from_messages(messages)
    if row.get("instruction") and row.get("output"):
        return {key: str(row.get(key) or "") for key in TURN_KEYS}
    return None


def has_turns(entry: Mapping[str, Any]) -> bool:
    """Whether a dataset entry's rows can be cut to first turns: plain text (``type: completion``) has none."""
    kind = entry.get("type")
    return not (isinstance(kind, str) and kind.split(".")[0] == "completion")


def _messages(value: Any) -> list[Mapping[str, Any]]:
    listed = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    return [message for message in listed if isinstance(message, Mapping)]


def first_turns(batch: pa.RecordBatch | pa.Table) -> pa.Table:
    """The first turns of a batch's rows, columns of text; rows without a complete one are left out."""
    import pyarrow as pa

    turns = [turn for turn in map(first_turn, batch.to_pylist()) if turn is not None]
    return pa.Table.from_pylist(turns, schema=pa.schema([(key, pa.string()) for key in TURN_KEYS]))


def _from_messages(messages: Sequence[Mapping[str, Any]]) -> dict[str, str] | None:
    system = ""
    instruction: str | None = None
    for message in messages:
        role, text = _role(message), _text(message)
        if instruction is None and role == "system":
            system = text
        elif instruction is None and role in USER_ROLES and text:
            instruction = f"{system}\n\n{text}" if system else text
        elif instruction is not None:
            return (
                {"instruction": instruction, "input": "", "output": text} if role in ASSISTANT_ROLES and text else None
            )
    return None


def _role(message: Mapping[str, Any]) -> str:
    return next((str(message[key]).lower() for key in ROLE_KEYS if message.get(key)), "")


def _text(message: Mapping[str, Any]) -> str:
    content = next((message[key] for key in TEXT_KEYS if message.get(key)), "")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return str(content).strip()
