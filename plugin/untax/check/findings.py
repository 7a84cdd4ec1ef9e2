"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "fail", "unknown"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: ``fail`` for what would stop a run or spoil its result, ``note`` for what one should know, ``unknown``
            for what could not be looked at.
        where: the file and key, or the thing.
        text: what is so, in a sentence.
        fix: what to do about it.
    """

    state: State
    where: str
    text: str
    fix: str = ""


def failed(findings: list[Finding]) -> bool:
    """Whether anything would fail."""
    return any(finding.state == "fail" for finding in findings)


def counted(rows: list[int], of: int) -> str:
    """Which rows, by their numbers from 0.

    >>> counted([3, 7], 10)
    '2 of 10 rows (3, 7)'
    """
    some = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    return f"{len(rows):,} of {of:,} rows ({some})"
