"""Baize's dialogues as rows of instruction and output: the first turn of each (Disperse-Then-Merge, appendix A.1).

python recipes/dtm-llama2-7b-baize/rows.py medical_chat_data.json quora_chat_data.json stackoverflow_chat_data.json \
    -o run/data/baize.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from untax.errors import UntaxError
from untax.files import new_file

HUMAN, ASSISTANT = "[|Human|]", "[|AI|]"


def first_turn(dialogue: str) -> dict[str, str] | None:
    """The first question and its answer; None where one of them is missing or empty."""
    _, _, asked = dialogue.partition(HUMAN)
    instruction, _, answered = asked.partition(ASSISTANT)
    output = answered.split(HUMAN, 1)[0].split(ASSISTANT, 1)[0]
    if not instruction.strip() or HUMAN in instruction or not output.strip():
        return None
    return {"instruction": instruction.strip(), "input": "", "output": output.strip()}


def dialogues(file: Path) -> Iterator[str]:
    """The dialogues of one of Baize's files.

    Raises:
        UntaxError: it cannot be read, or is no list of rows with a text ``input``.
    """
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UntaxError(f"This is no JSON that can be read: {error}", where=file) from error
    for number, row in enumerate(rows if isinstance(rows, list) else [rows]):
        if not isinstance(row, dict) or not isinstance(row.get("input"), str):
            raise UntaxError("A row has no text `input`: this is none of Baize's files.", where=f"{file}, row {number}")
        yield row["input"]


def main(arguments: list[str] | None = None) -> None:
    """Read the files, write the rows, say how many."""
    parser = argparse.ArgumentParser(description="Baize's dialogues as rows of instruction and output.")
    parser.add_argument("files", nargs="+", type=Path, help="Baize's JSON files.")
    parser.add_argument("-o", "--out", required=True, type=Path, help="The rows, as JSON Lines.")
    given = parser.parse_args(arguments)
    kept = left_out = 0
    with new_file(given.out) as part, part.open("w", encoding="utf-8") as lines:
        for file in given.files:
            for dialogue in dialogues(file):
                row = first_turn(dialogue)
                if row is None:
                    left_out += 1
                    continue
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                kept += 1
    print(f"{kept} rows in {given.out}; {left_out} dialogues without a first turn are left out")


if __name__ == "__main__":
    try:
        main()
    except UntaxError as error:
        sys.exit(str(error))
