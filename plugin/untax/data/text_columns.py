"""Whether rows have the column that is to be read, told from the file itself: reading them all takes seconds to start.

What cannot be told here is left to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from untax.data.text_files import ALPACA, BLOCK, COLUMN, is_text, no_column, not_text, occurs, opened, refuse_file


def check_columns(path: Path, column: str, *, instructions: bool = True, option: str = "--data") -> None:
    """Refuse a file whose rows cannot have texts in that column.

    Args:
        path: as for ``TextFile``.
        column: likewise.
        instructions: whether rows of instruction and output will do, in place of the column ``text``.
        option: the option of the command that named the file, for messages.

    Raises:
        UntaxError: there is no such file, it is of no known kind, no row has the column, or the column is not of text.
    """
    refuse_file(path, option=option)
    if is_text(path):
        return
    instead = instructions and column == COLUMN
    if path.suffix == ".parquet":
        _check_parquet(path, column, instead)
    else:
        _check_json(path, column, instead)


def _check_parquet(path: Path, column: str, instead: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return
    if column in schema.names:
        kind = schema.field(column).type
        if pa.types.is_nested(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
            raise not_text(column, str(kind), where=path)
    elif not (instead and _is_instruction({*schema.names})):
        raise no_column(column, schema.names, where=path, instructions=instead)


def _check_json(path: Path, column: str, instead: bool) -> None:
    try:
        first = _first_row(path)
        if first is None or (instead and _is_instruction({*first})):
            return
        if column in first:
            value = first[column]
            if value is not None and not isinstance(value, str):
                raise not_text(column, type(value).__name__, where=path)
        elif not (_anywhere(path, column) or (instead and all(_anywhere(path, name) for name in _NEEDED))):
            raise no_column(column, first, where=path, instructions=instead)
    except (UnicodeDecodeError, OSError, EOFError):
        return


_NEEDED = (ALPACA[0], ALPACA[-1])


def _is_instruction(names: set[str]) -> bool:
    return names.issuperset(_NEEDED)


def _first_row(path: Path) -> dict[str, Any] | None:
    """Of a file of lines, or of one list; None where it is neither, or the row is very long."""
    with opened(path) as file:
        begin = file.read(BLOCK).lstrip().removeprefix("[").lstrip()
    try:
        row, _ = json.JSONDecoder().raw_decode(begin)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _anywhere(path: Path, name: str) -> bool:
    """Whether any row may have such a key: rows need not all have the same."""
    return any(occurs(json.dumps(name, ensure_ascii=ascii_only), path) for ascii_only in (True, False))
