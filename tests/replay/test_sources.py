"""Texts out of files and datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from toys import write_jsonl
from untax.errors import UntaxError
from untax.replay.request import TextSource
from untax.replay.sources import FilePool, StreamPool, check_sources, pools, source_identity

TEXTS = [f"Text number {index}." for index in range(50)]


def rows(texts: list[str], **more: Any) -> list[dict[str, Any]]:
    return [{"text": text, **more} for text in texts]


def stream(path: Path | str, seed: int = 1, **options: Any) -> list[str]:
    (pool,) = pools((TextSource(str(path), **options),), seed, {})
    assert isinstance(pool, StreamPool)
    return list(pool.texts(1000))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset of several files with two splits, as a repository of the hub has it."""
    for shard in range(3):
        write_jsonl(tmp_path / "set" / f"train-{shard}.jsonl", rows(TEXTS[shard::3]))
    write_jsonl(tmp_path / "set" / "test.jsonl", rows(["held out"]))
    return tmp_path / "set"


def test_files_are_one_pool(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n \n\ntwo")
    write_jsonl(tmp_path / "b.jsonl", rows(["three", "  "]))
    sources = (TextSource(str(tmp_path / "a.txt")), TextSource(str(tmp_path / "b.jsonl")))
    check_sources(sources)
    (pool,) = pools(sources, 1, {})
    assert isinstance(pool, FilePool)
    pool.open()
    assert list(pool.texts(100)) == list(pool.texts(100)) == ["one", "two", "three"]
    assert list(pool.texts(0)) == []


def test_a_folder_is_streamed_in_the_order_of_the_seed(folder: Path) -> None:
    found = stream(folder)
    assert sorted(found) == sorted(TEXTS)
    assert found == stream(folder) != stream(folder, seed=2)
    assert found != TEXTS
    assert stream(folder, split="test") == ["held out"]


def test_saved_datasets(tmp_path: Path) -> None:
    Dataset.from_list(rows(TEXTS)).save_to_disk(tmp_path / "one")
    DatasetDict({"train": Dataset.from_list(rows(TEXTS)), "test": Dataset.from_list(rows(["x"]))}).save_to_disk(
        tmp_path / "several"
    )
    assert sorted(stream(tmp_path / "one")) == sorted(stream(tmp_path / "several")) == sorted(TEXTS)
    assert stream(tmp_path / "several", split="test") == ["x"]
    with pytest.raises(UntaxError, match="no split 'dev', only train, test"):
        stream(tmp_path / "several", split="dev")


def test_an_unknown_split_or_configuration(folder: Path) -> None:
    with pytest.raises(UntaxError, match="dev"):
        stream(folder, split="dev")
    with pytest.raises(UntaxError, match="BuilderConfig 'english' not found"):
        stream(folder, name="english")


def test_columns_of_a_dataset(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "set" / "train.jsonl", [{"body": "one", "id": 1}])
    assert stream(tmp_path / "set", column="body") == ["one"]
    with pytest.raises(UntaxError, match="no column 'text', only body, id"):
        stream(tmp_path / "set")
    with pytest.raises(UntaxError, match="'id' holds a int, not text"):
        stream(tmp_path / "set", column="id")


def test_the_identity_is_of_the_content(folder: Path, tmp_path: Path) -> None:
    before = source_identity(TextSource(str(folder)))
    (folder / "test.jsonl").write_text(json.dumps({"text": "changed"}))
    assert source_identity(TextSource(str(folder))) != before
    (tmp_path / "a.txt").write_text("one")
    assert len(source_identity(TextSource(str(tmp_path / "a.txt")))) == 64


def test_a_dataset_of_the_hub_is_read_at_the_commit_that_is_recorded() -> None:
    sources = (TextSource("org/set", name="en"), TextSource("org/other", revision="v1"))
    identities = {"texts/org/set": "hub:org/set@0123abcd", "texts/org/other": "hub:org/other@4567"}
    found = pools(sources, 1, identities)
    assert [pool.source.revision for pool in found if isinstance(pool, StreamPool)] == ["0123abcd", "4567"]


def test_a_hub_that_cannot_be_reached_is_said() -> None:
    """Tests are offline."""
    with pytest.raises(UntaxError, match="The hub does not say what this dataset is"):
        source_identity(TextSource("org/no-such-set"))
    with pytest.raises(UntaxError, match="cannot be read"):
        stream("org/no-such-set")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (TextSource("missing.jsonl"), "no such file or folder"),
        (TextSource("./missing"), "no such file or folder"),
        (TextSource("https://example.org/c4.jsonl"), "lies at a URL, download"),
        (TextSource("a.jsonl", column="story"), "no column 'story'"),
        (TextSource("instructions.jsonl"), "no column 'text', only instruction, output"),
        (TextSource("a.bin"), "cannot be told from its name"),
        (TextSource("a.jsonl", split="test"), "no splits, configurations or revisions"),
        (TextSource("a.jsonl", name="en"), "no splits, configurations or revisions"),
        (TextSource("a.jsonl", separator="--"), "separator is for plain text"),
        (TextSource("org/set", separator="--"), "separator is for plain text"),
        (TextSource("empty"), "holds no files"),
    ],
)
def test_mistakes_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: TextSource, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("a.jsonl"), rows(["one"]))
    write_jsonl(Path("instructions.jsonl"), [{"instruction": "Say one.", "output": "one"}])
    Path("a.bin").touch()
    Path("empty").mkdir()
    with pytest.raises(UntaxError) as caught:
        check_sources((source,))
    assert expected in str(caught.value)
    assert "--data" not in str(caught.value)


def test_the_same_texts_twice_are_refused() -> None:
    with pytest.raises(UntaxError, match="named twice"):
        check_sources((TextSource("org/set"), TextSource("org/set")))
    with pytest.raises(UntaxError, match="No texts"):
        check_sources(())
