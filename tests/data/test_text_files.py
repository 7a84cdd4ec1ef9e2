"""Texts out of files, against splitting and shuffling done on whole files."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from toys import sft_rows, write_jsonl
from untax.data import text_files as texts
from untax.data.text_files import Text, TextFile, choose
from untax.errors import UntaxError


@pytest.fixture(scope="module", autouse=True)
def _imported_once() -> None:
    """Rows are read in forked processes: what is here already they need not import."""
    import axolotl.utils.data.shared  # noqa: F401


def prompt(row: Mapping[str, Any]) -> str:
    return f"<{row['instruction']}|{row.get('input')}>"


def read(path: Path, *, column: str = "text", separator: str | None = None, tokens: int = 100) -> list[Text]:
    return list(TextFile(path, column, separator, prompt).texts(tokens))


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# Plain text


def test_blank_lines_part_texts(tmp_path: Path) -> None:
    found = read(written(tmp_path / "a.txt", "\n\none\nline two\n \t\nthree\n\n\n\n  four\n"))
    assert [text.text for text in found] == ["one\nline two", "three", "four"]
    assert [text.position for text in found] == [0, 1, 2]


def test_end_of_text_parts_them_where_it_occurs(tmp_path: Path) -> None:
    found = read(written(tmp_path / "a.txt", "one\n\nstill one<|endoftext|>\n<|endoftext|>two"))
    assert [text.text for text in found] == ["one\n\nstill one", "two"]


def test_a_separator_is_no_pattern(tmp_path: Path) -> None:
    found = read(written(tmp_path / "a.txt", "one.*two\n\nthree.*.*"), separator=".*")
    assert [text.text for text in found] == ["one", "two\n\nthree"]


def test_packed_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one<|endoftext|>two"))
    assert [text.text for text in read(tmp_path / "a.txt.gz")] == ["one", "two"]


@settings(derandomize=True, max_examples=300)
@given(st.text("ab<> \n", max_size=60), st.integers(1, 7), st.sampled_from(["<>", "\n\n", "a", texts.BLANK_LINE]))
def test_blocks_split_as_the_whole(text: str, size: int, separator: str) -> None:
    pattern = re.compile(separator)
    blocks = (text[start : start + size] for start in range(0, len(text), size))
    assert list(texts._split(blocks, pattern, 1000)) == pattern.split(text)


@settings(derandomize=True, max_examples=300)
@given(st.text("ab<>", max_size=100), st.integers(1, 20), st.sampled_from(["<>", "a", "<a>"]))
@example("bbbbbb<>b", 7, "<>")
@example("bbbbbb<a>b", 8, "<a>")
def test_a_separator_across_the_border_of_what_is_kept_is_found(text: str, size: int, separator: str) -> None:
    blocks = [text[start : start + size] for start in range(0, len(text), size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "CARRIED", 5)
        assert list(texts._split(blocks, re.compile(separator), 1000)) == text.split(separator)
        assert list(texts._split(blocks, re.compile(separator), 4)) == [part[:4] for part in text.split(separator)]


@pytest.mark.parametrize("size", range(1, 30))
def test_end_of_text_is_seen_across_the_border_of_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(texts, "BLOCK", size)
    found = read(written(tmp_path / "a.txt", "one\n\nstill one<|endoftext|>two"))
    assert [text.text for text in found] == ["one\n\nstill one", "two"]


def test_a_text_without_an_end_is_not_kept_whole() -> None:
    sizes = []

    def blocks() -> Iterator[str]:
        import tracemalloc

        tracemalloc.start()
        for _ in range(200):
            yield "x" * 100_000
            sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()

    (found,) = texts._split(blocks(), re.compile("\n\n"), 5_000)
    assert found == "x" * 5_000
    assert max(sizes) < 1_000_000


def test_a_cut_text_is_long_enough(tmp_path: Path) -> None:
    (found,) = read(written(tmp_path / "a.txt", "word " * 10_000), tokens=3)
    assert len(found.text) == 3 * texts.CHARACTERS_PER_TOKEN


# Rows


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_a_column_of_rows(tmp_path: Path, name: str) -> None:
    rows = [{"text": "one", "id": 1}, {"text": "  ", "id": 2}, {"text": None, "id": 3}, {"text": " two\n", "id": 4}]
    path = tmp_path / name
    if name.endswith("parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith("jsonl"):
        write_jsonl(path, rows)
    else:
        path.write_text(json.dumps(rows))
    assert read(path) == [Text(0, "one"), Text(1, " two\n")]


def test_rows_with_an_instruction_give_their_response_after_the_prompt(tmp_path: Path) -> None:
    found = read(write_jsonl(tmp_path / "a.jsonl", sft_rows(3)))
    assert found[1] == Text(1, "Toy 1 is red and has 1 wheels.", "<Tell me about toy 1.|>")
    without_input = [{"instruction": "Go", "output": "I go."}]
    assert read(write_jsonl(tmp_path / "b.jsonl", without_input)) == [Text(0, "I go.", "<Go|None>")]


def test_another_column_is_read_as_text(tmp_path: Path) -> None:
    found = read(write_jsonl(tmp_path / "a.jsonl", sft_rows(2)), column="instruction")
    assert [(text.text, text.prompt) for text in found][1] == ("Tell me about toy 1.", "")


@pytest.mark.parametrize(
    ("rows", "column", "expected"),
    [
        ([{"body": "one"}], "text", r"no column 'text', only body"),
        (sft_rows(1), "story", r"no column 'story', only instruction, input, output"),
        ([{"text": ["one"]}], "text", r"holds a list, not text"),
    ],
)
def test_rows_without_such_text_are_refused(tmp_path: Path, rows: Any, column: str, expected: str) -> None:
    with pytest.raises(UntaxError, match=expected):
        read(write_jsonl(tmp_path / "a.jsonl", rows), column=column)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UntaxError, match="no such data file"):
        read(tmp_path / "a.txt")
    with pytest.raises(UntaxError, match=r"cannot be told from its name: 'a.bin'"):
        read(written(tmp_path / "a.bin", "text"))
    (tmp_path / "latin.txt").write_bytes("Grün".encode("latin-1"))
    with pytest.raises(UntaxError, match="not UTF-8"):
        read(tmp_path / "latin.txt")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"one two three" * 99)[:-9])
    with pytest.raises(UntaxError, match="cannot be unpacked"):
        read(tmp_path / "cut.txt.gz")
    with pytest.raises(UntaxError, match="cannot be read"):
        read(written(tmp_path / "a.jsonl", '{"text": "one"\n'))


# Choosing


def numbered(count: int) -> Iterator[Text]:
    return (Text(position, str(position)) for position in range(count))


@settings(derandomize=True)
@given(st.integers(0, 60), st.integers(1, 70), st.integers(1, 70), st.integers(-3, 3))
def test_more_samples_are_the_same_and_some_more(count: int, fewer: int, more: int, seed: int) -> None:
    fewer, more = sorted((fewer, more))
    some, known = choose(numbered(count), samples=fewer, seed=seed)
    many, _ = choose(numbered(count), samples=more, seed=seed)
    assert known == count
    assert many[:fewer] == some
    assert len({text.position for text in many}) == len(many) == min(count, more)


def test_the_choice_is_a_shuffle_of_the_seed() -> None:
    order = [text.position for text in choose(numbered(1000), samples=1000, seed=1)[0]]
    other = [text.position for text in choose(numbered(1000), samples=1000, seed=2)[0]]
    assert sorted(order) == sorted(other) == list(range(1000))
    # Ranks of two independent orders: a correlation of 1 / sqrt(1000) = 0.03 is to be expected.
    for one, two in ((order, range(1000)), (order, other)):
        correlation = sum((a - 499.5) * (b - 499.5) for a, b in zip(one, two, strict=True)) / (1000 * 1000**2 / 12)
        assert abs(correlation) < 0.1
