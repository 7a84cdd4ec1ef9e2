"""Columns that cannot be read are refused from the file itself, and nothing else is."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from untax.data.text_columns import check_columns
from untax.errors import UntaxError

TEXT = {"text": "one", "id": 1}
INSTRUCTION = {"instruction": "Say one.", "output": "one"}


def written(folder: Path, name: str, rows: list[dict[str, Any]], *, ascii_only: bool = True) -> Path:
    path = folder / name
    if name.endswith("parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    text = "\n".join(lines) if "jsonl" in name else "[\n" + ",\n".join(lines) + "]"
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return path


KINDS = pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"])


@KINDS
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, [TEXT, {"text": "two", "id": 2}])
    check_columns(path, "text")
    with pytest.raises(UntaxError, match="no column 'story', only text, id") as error:
        check_columns(path, "story")
    assert error.value.where == str(path)
    with pytest.raises(UntaxError, match=r"'id' holds a int(64)?, not text"):
        check_columns(path, "id")


@KINDS
def test_instructions_take_the_place_of_text_only(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, [INSTRUCTION])
    check_columns(path, "text")
    with pytest.raises(UntaxError, match="no column 'story', only instruction, output"):
        check_columns(path, "story")


@pytest.mark.parametrize("ascii_only", [True, False])
def test_later_rows_may_have_it(tmp_path: Path, ascii_only: bool) -> None:
    rows = [{"id": 1}, {"id": 2, "Märchen": "one"}]
    path = written(tmp_path, "a.jsonl", rows, ascii_only=ascii_only)
    check_columns(path, "Märchen")
    with pytest.raises(UntaxError, match="no column 'Mär'"):
        check_columns(path, "Mär")
    check_columns(written(tmp_path, "b.jsonl", [{"id": 1}, INSTRUCTION]), "text")


@pytest.mark.parametrize("content", [b"", b"{not json", b"3\n4\n", b"\xff\xfe{}"])
def test_what_is_wrong_otherwise_is_left_to_who_reads_it(tmp_path: Path, content: bytes) -> None:
    for name in ("a.jsonl", "a.jsonl.gz", "a.parquet"):
        (tmp_path / name).write_bytes(content)
        check_columns(tmp_path / name, "text")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UntaxError, match="no such data file"):
        check_columns(tmp_path / "a.txt", "text")


def test_nothing_large_is_imported(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", [TEXT])
    script = (
        "import sys; from pathlib import Path; from untax.data.text_columns import check_columns\n"
        f"check_columns(Path({str(path)!r}), 'text')\n"
        "sys.exit({'torch', 'transformers', 'axolotl', 'datasets'} & set(sys.modules) != set())"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
