"""The script that makes rows of Baize's dialogues, run as its README says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
FOLDER = REPOSITORY / "recipes/dtm-llama2-7b-baize"
OPENING = "The conversation between human and AI assistant.\n"
NAMES = ("medical_chat_data.json", "quora_chat_data.json", "stackoverflow_chat_data.json")


def command() -> list[str]:
    """What the README says to type, with this Python and the script's own path."""
    text = (FOLDER / "README.md").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^    python (recipes/\S+/rows\.py .*)$", text, flags=re.MULTILINE)
    script, *rest = shlex.split(line)
    return [sys.executable, str(REPOSITORY / script), *rest]


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(), cwd=folder, capture_output=True, text=True, check=False)


def write(folder: Path, *dialogues: str) -> None:
    for name in NAMES:
        (folder / name).write_text(json.dumps([{"topic": "T", "input": dialogue} for dialogue in dialogues]))


def test_first_turns_become_rows(tmp_path: Path):
    write(
        tmp_path,
        OPENING + "[|Human|] Hi?\n[|AI|] Hello.\nYes.\n[|Human|] More?\n[|AI|] No.\n[|Human|] ",
        OPENING + "[|Human|] Nothing follows",
        OPENING + "[|Human|] \n[|AI|] To nothing.\n[|Human|] ",
        OPENING + "[|Human|] Unanswered\n[|Human|] Again\n[|AI|] Late.\n[|Human|] ",
        "no mark at all",
    )
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run/data/baize.jsonl").read_text().splitlines()]
    assert rows == [{"instruction": "Hi?", "input": "", "output": "Hello.\nYes."}] * 3
    assert "3 rows" in done.stdout
    assert "12 dialogues without a first turn" in done.stdout


@pytest.mark.parametrize("content", ["not json", '[{"topic": "T"}]', '{"input": 1}'])
def test_other_files_are_refused_and_nothing_is_left(content: str, tmp_path: Path):
    write(tmp_path, OPENING + "[|Human|] Hi?\n[|AI|] Hello.\n[|Human|] ")
    (tmp_path / NAMES[1]).write_text(content)
    done = run(tmp_path)
    assert done.returncode == 1
    assert NAMES[1] in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "run/data").iterdir()) == []
