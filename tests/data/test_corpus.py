"""Rows as Axolotl reads them, and plain errors where it would raise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toys import Workspace, sft_rows, write_jsonl
from untax.data.corpus import Corpus, check_entries, entries_digest, read_corpus
from untax.errors import UntaxError
from untax.manifest import digest_file


def read(*entries: dict[str, Any], **config: Any) -> Corpus:
    from axolotl.utils.dict import DictDefault

    return read_corpus(DictDefault({"datasets": list(entries), **config}))


def outputs(corpus: Corpus) -> list[str]:
    return [row["output"] for source in corpus.sources for row in source]


def test_sources_follow_each_other(workspace: Workspace) -> None:
    write_jsonl(Path("more/other.jsonl"), sft_rows(5, start=100))
    corpus = read({"path": "sft.jsonl"}, {"path": "more/other.jsonl"})
    assert len(corpus) == 29
    assert [source.name for source in corpus.sources] == ["sft.jsonl", "more/other.jsonl"]
    assert outputs(corpus)[24].startswith("Toy 100")
    assert len(corpus.digests) == 29
    assert len(set(corpus.digests)) == 29


@pytest.mark.parametrize("suffix", ["json", "csv", "parquet", "arrow"])
def test_the_file_format_does_not_matter(workspace: Workspace, suffix: str) -> None:
    from datasets import Dataset

    full = [{**row, "input": "some"} for row in sft_rows(6)]  # CSV cannot tell empty text from none
    rows = Dataset.from_list(full)
    write: dict[str, Callable[[], Any]] = {
        "json": lambda: Path("a.json").write_text(json.dumps(full)),
        "csv": lambda: rows.to_csv("a.csv", index=False),
        "parquet": lambda: rows.to_parquet("a.parquet"),
        "arrow": lambda: rows.save_to_disk("a.arrow"),
    }
    write[suffix]()
    write_jsonl(Path("a.jsonl"), full)
    assert read({"path": f"a.{suffix}"}).digest == read({"path": "a.jsonl"}).digest


def test_splits_of_a_saved_dataset(workspace: Workspace) -> None:
    from datasets import Dataset, DatasetDict

    splits = {"train": Dataset.from_list(sft_rows(6)), "held": Dataset.from_list(sft_rows(3, start=50))}
    DatasetDict(splits).save_to_disk("saved")
    assert len(read({"path": "saved"})) == 6
    assert len(read({"path": "saved", "split": "held"})) == 3
    DatasetDict({"held": splits["held"]}).save_to_disk("held-only")
    with pytest.raises(UntaxError, match="no split 'train', only held"):
        read({"path": "held-only"})


def test_slices_and_shards_are_axolotls(workspace: Workspace) -> None:
    assert outputs(read({"path": "sft.jsonl", "split": "train[:5]"})) == [row["output"] for row in sft_rows(5)]
    first, second = (read({"path": "sft.jsonl", "shards": 2, "shards_idx": i}, seed=42) for i in (0, 1))
    assert sorted(outputs(first) + outputs(second)) == sorted(row["output"] for row in sft_rows(24))
    with pytest.raises(UntaxError, match="without a seed"):
        read({"path": "sft.jsonl", "shards": 2})


def test_rows_added_later_and_a_new_column_keep_the_old_identities(workspace: Workspace) -> None:
    rows = [{**row, "score": index} for index, row in enumerate(sft_rows(5))]
    before = read({"path": str(write_jsonl(Path("a.jsonl"), rows))}).digests
    new = [{**sft_rows(1, start=90)[0], "score": 0.5, "tag": "x", "meta": {"deep": {"n": 1}}}]
    after = read({"path": str(write_jsonl(Path("b.jsonl"), new + rows))}).digests
    assert after[1:] == before


def test_images_are_told_apart_by_their_bytes(workspace: Workspace) -> None:
    from datasets import Dataset, Features, Image, Value

    features = Features({"output": Value("string"), "image": Image()})
    rows = [{"output": "x", "image": {"bytes": bytes([index]) * 9, "path": None}} for index in (1, 2)]
    Dataset.from_list(rows, features=features).to_parquet("images.parquet")
    first, second = read({"path": "images.parquet"}).digests
    assert first != second


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (None, "no dataset"),
        ([], "no dataset"),
        ("sft.jsonl", "no dataset"),
        ([{"type": "alpaca"}], "no path"),
        (["sft.jsonl"], "no path"),
        ([{"path": "gone.jsonl"}], "does not exist"),
        ([{"path": "./gone"}], "does not exist"),
        ([{"path": "data/of/mine"}], "does not exist"),
        ([{"path": "empty.jsonl"}], "empty"),
        ([{"path": "blank.jsonl"}], "empty"),
        ([{"path": "list.json"}], "empty"),
        ([{"path": "none.parquet"}], "empty"),
        ([{"path": "empty.parquet"}], "empty"),
    ],
)
def test_entries_that_need_no_loading_to_be_wrong(workspace: Workspace, entries: Any, said: str) -> None:
    pq.write_table(pa.table({"instruction": pa.array([], pa.string())}), "none.parquet")
    Path("empty.jsonl").touch()
    Path("empty.parquet").touch()
    Path("list.json").write_text("[]")
    Path("blank.jsonl").write_text("\n \n")
    with pytest.raises(UntaxError, match=said) as error:
        check_entries(entries)
    assert "datasets" in str(error.value.where)
    assert error.value.fix


def test_names_of_the_hub_are_left_to_axolotl(workspace: Workspace) -> None:
    check_entries([{"path": "tatsu-lab/alpaca"}, {"path": "squad"}, {"path": "s3://bucket/a.jsonl"}])


@pytest.mark.parametrize("name", ["bad.jsonl", "bad.parquet"])
def test_files_that_cannot_be_read(workspace: Workspace, name: str) -> None:
    Path(name).write_text('{"instruction": "a"\n')
    with pytest.raises(UntaxError, match="cannot be read") as error:
        read({"path": name})
    assert name in str(error.value)


def test_a_dataset_of_the_hub_that_is_not_there(workspace: Workspace) -> None:
    with pytest.raises(UntaxError, match="cannot be read"):
        read({"path": "nobody/nothing"})


def test_the_digest_of_entries_changes_with_what_is_read() -> None:
    entry = {"path": "a.jsonl", "type": "alpaca"}
    changes: list[dict[str, Any]] = [
        {"path": "b.jsonl"},
        {"split": "train[:5]"},
        {"name": "main"},
        {"data_files": ["a", "b"]},
        {"ds_type": "json"},
        {"shards": 2},
        {"shards": 2, "shards_idx": 1},
        {"preprocess_shards": 2},
        {"revision": "abc"},
    ]
    digests = [entries_digest([entry]), entries_digest([entry, entry]), entries_digest([])]
    digests += [entries_digest([{**entry, **change}]) for change in changes]
    assert len(set(digests)) == len(digests)
    two = [entry, {"path": "b.jsonl"}]
    assert entries_digest(two) != entries_digest(two[::-1])


def test_the_digest_of_entries_does_not_change_with_how_rows_are_used() -> None:
    from axolotl.utils.dict import DictDefault

    entry = {"path": "a.jsonl", "shards": 2}
    same: list[Any] = [{**entry, "type": "alpaca", "name": None}, {**entry, "shards": "2"}, DictDefault(entry)]
    assert {entries_digest([other]) for other in same} == {entries_digest([entry])}


def test_a_source_keeps_the_digest_of_the_file_that_was_read(workspace: Workspace) -> None:
    corpus, before = read({"path": "sft.jsonl"}), digest_file(Path("sft.jsonl"))
    write_jsonl(Path("sft.jsonl"), sft_rows(3))
    assert corpus.sources[0].digest == before
