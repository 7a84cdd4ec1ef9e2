"""Streamed data: the rows of a cluster are those that they are without streaming, and nothing else is trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from toys import Workspace, sft_rows, write_jsonl
from untax.data.corpus import entries_digest, read_corpus
from untax.disperse.hashing import hash_clusters, random_clusters
from untax.disperse.settings import DisperseSettings, read_settings
from untax.disperse.streaming import ClusterRows
from untax.errors import UntaxError

K = 3
MIXED: list[dict[str, Any]] = [
    {
        "id": index if index % 5 else index + 0.5,
        "messages": [{"role": "user", "content": f"Grüße {index}"}, {"role": "assistant", "content": "x" * index}],
        "note": None if index < 40 else f"late {index}",
        "day": f"2020-01-{index % 28 + 1:02}",
        "tags": [] if index % 2 else ["a", None],
        "score": {"value": index / 7} if index % 3 else None,
    }
    for index in range(90)
]


def streamed(kind: str, file: Path) -> Any:
    from datasets import load_dataset

    return load_dataset(kind, data_files=str(file), split="train", streaming=True)


def cluster_rows(stream: Any, **settings: Any) -> tuple[list[dict[str, Any]], ClusterRows]:
    rows = ClusterRows(DisperseSettings(**settings))
    return list(rows.stream(stream)), rows


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("untax.disperse.streaming.BATCH_ROWS", 7)


@pytest.mark.parametrize("kind", ["json", "parquet", "csv"])
def test_the_clusters_are_those_of_data_that_are_not_streamed(tmp_path: Path, small_batches: None, kind: str) -> None:
    from axolotl.utils.dict import DictDefault
    from datasets import Dataset

    file = tmp_path / f"rows.{kind}"
    if kind == "json":
        write_jsonl(file, MIXED)
    elif kind == "parquet":
        Dataset.from_list(MIXED).to_parquet(file)
    else:
        Dataset.from_list(sft_rows(90)).to_csv(file)
    corpus = read_corpus(DictDefault({"datasets": [{"path": str(file), "ds_type": kind}]}))
    expected = random_clusters(corpus, clusters=K, seed=7)
    whole = list(streamed(kind, file))
    assert len(whole) == 90
    for cluster in range(K):
        found, rows = cluster_rows(streamed(kind, file), clusters=K, cluster=cluster, seed=7)
        assert found == [row for row, of in zip(whole, expected, strict=True) if of == cluster]
        section = rows.section()
        assert (section["rows_read"], section["rows_kept"]) == (90, len(found))


def test_the_stream_is_not_read_ahead(tmp_path: Path) -> None:
    from datasets import Features, IterableDataset, Value

    read: list[int] = []

    def endless() -> Iterator[dict[str, Any]]:
        for index in range(10**9):
            read.append(index)
            yield {"text": f"row {index}"}

    features = Features({"text": Value("string")})
    rows = ClusterRows(DisperseSettings(clusters=K, cluster=1))
    some = list(rows.stream(IterableDataset.from_generator(endless, features=features)).take(5))
    assert len(some) == 5
    assert len(read) <= 2 * 1000  # A batch, and what `datasets` collects of the next one.
    assert rows.section()["rows_read"] == len(read)


def test_rows_are_counted_in_the_workers_of_a_data_loader(tmp_path: Path) -> None:
    from datasets import load_dataset
    from torch.utils.data import DataLoader

    files = [str(write_jsonl(tmp_path / f"{part}.jsonl", sft_rows(40, start=40 * part))) for part in range(2)]
    rows = ClusterRows(DisperseSettings(clusters=2, cluster=0))
    stream = rows.stream(load_dataset("json", data_files=files, split="train", streaming=True))
    found = list(DataLoader(stream, batch_size=None, num_workers=2))
    section = rows.section()
    assert section["rows_read"] == 80
    assert 20 < section["rows_kept"] == len(found) < 60
    assert rows.tally.path.exists()


def test_the_counts_leave_no_file_behind() -> None:
    rows = ClusterRows(DisperseSettings(clusters=2, cluster=0))
    path = rows.tally.path
    rows.tally.add(1, 2, 3)
    assert path.exists()
    del rows
    assert not path.exists()


def test_first_turns(tmp_path: Path, small_batches: None) -> None:
    dialogues: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] * 2}
        for i in range(30)
    ]
    dialogues[4]["messages"].pop(1)
    file = write_jsonl(tmp_path / "talks.jsonl", dialogues)
    found, rows = cluster_rows(streamed("json", file), first_turn=True)
    assert found == [{"instruction": f"q{i}", "input": "", "output": f"a{i}"} for i in range(30) if i != 4]
    assert rows.section()["rows_without_first_turn"] == 1
    parts = [
        cluster_rows(streamed("json", file), clusters=2, cluster=cluster, first_turn=True)[0] for cluster in (0, 1)
    ]
    assert min(map(len, parts)) > 5
    assert sorted(json.dumps(row) for part in parts for row in part) == sorted(map(json.dumps, found))


def test_a_row_without_identity() -> None:
    import pyarrow as pa

    odd = pa.table({"a": pa.array([b"0123456789abcdef"], pa.uuid())})
    with pytest.raises(UntaxError, match="cannot be told apart"):
        ClusterRows(DisperseSettings(clusters=2, cluster=0))(odd)


STREAMED: dict[str, Any] = {
    "plugins": ["untax.DispersePlugin"],
    "streaming": True,
    "disperse_clusters": K,
    "shuffle_merged_datasets": True,
}


def own(rows: list[dict[str, Any]], cluster: int) -> list[dict[str, Any]]:
    from untax.data.digest import row_digest

    found = hash_clusters(map(row_digest, rows), clusters=K, seed=42)
    return [row for row, of in zip(rows, found, strict=True) if of == cluster]


def one_epoch(rows: int) -> int:
    """Steps at batches of 2."""
    return math.ceil(rows / 2)


def test_training_on_streamed_instructions(
    workspace: Workspace, axolotl_train: Callable[[Path], None], trained: list[str]
) -> None:
    """Two sources; after a training without dispersal that leaves tokenised data of all rows in Axolotl's cache."""
    from datasets import Dataset

    more = sft_rows(20, start=100)
    Dataset.from_list(more).to_parquet("more.parquet")
    datasets = [{"path": "sft.jsonl", "type": "alpaca"}, {"path": "more.parquet", "type": "alpaca"}]
    axolotl_train(workspace.config(plugins=["untax.ManifestPlugin"], datasets=datasets, max_steps=1))
    covered: list[str] = []
    for cluster in range(K):
        expected = [row["output"] for row in own(sft_rows(24) + more, cluster)]
        trained.clear()
        steps = one_epoch(len(expected))
        axolotl_train(workspace.config(**{**STREAMED, "max_steps": steps}, datasets=datasets, disperse_cluster=cluster))
        found = [output for output in expected if sum(output in text for text in trained) == 1]
        assert len(trained) == len(expected) == len(found) > 5
        covered += found
        manifest = workspace.manifest()
        assert manifest["training"]["rows"] is None
        assert manifest["disperse"] == {
            "cluster": cluster,
            "streaming": True,
            "strategy": "random",
            "seed": 42,
            "clusters": K,
            "first_turn": False,
            "entries": entries_digest(datasets),
            "rows_read": 44,
            "rows_kept": len(expected),
            "rows_without_first_turn": 0,
        }
    assert sorted(covered) == sorted(row["output"] for row in sft_rows(24) + more)
    assert not list(Path("prepared").rglob("assignment.parquet"))


def test_a_cluster_without_a_row(tmp_path: Path) -> None:
    row = sft_rows(1)
    cluster = next(cluster for cluster in range(K) if not own(row, cluster))
    found, rows = cluster_rows(streamed("json", write_jsonl(tmp_path / "a.jsonl", row)), clusters=K, cluster=cluster)
    assert found == []
    with pytest.raises(UntaxError, match="None of the 1 rows of the stream was trained on"):
        rows.section()


def test_a_stream_of_all_rows_is_not_taken_from_tokenised_data(
    workspace: Workspace, axolotl_train: Callable[[Path], None], trained: list[str]
) -> None:
    axolotl_train(workspace.config(plugins=["untax.ManifestPlugin"], max_steps=1))
    trained.clear()
    axolotl_train(workspace.config(plugins=["untax.ManifestPlugin"], max_steps=12, streaming=True))
    assert sorted(row["output"] for row in sft_rows(24) for text in trained if row["output"] in text) == sorted(
        row["output"] for row in sft_rows(24)
    )
    assert workspace.manifest()["training"]["rows"] is None


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_pretraining_on_a_stream(
    workspace: Workspace, axolotl_train: Callable[[Path], None], trained: list[str], packed: bool
) -> None:
    texts = [{"text": f"Story number {index} is about a dog named Rex{index}q."} for index in range(60)]
    write_jsonl(Path("text.jsonl"), texts)
    source = {"path": "json", "data_files": "text.jsonl", "type": "pretrain", "skip": 10}
    changes = {**STREAMED, "datasets": None, "pretraining_dataset": [source], "disperse_cluster": 1}
    packing = {"sample_packing": True, "sample_packing_bin_size": 50, "micro_batch_size": 1} if packed else {}
    expected = own(texts[10:], 1)
    axolotl_train(workspace.config(**{**changes, **packing, "max_steps": 1 if packed else one_epoch(len(expected))}))
    together = " ".join(trained)
    assert [row for row in texts if row["text"] in together] == (expected if not packed else _some(expected, together))
    section = workspace.manifest()["disperse"]
    assert (section["rows_read"], section["rows_kept"]) == (50, len(expected))
    assert workspace.manifest()["inputs"].keys() == {"base", "tokenizer", "pretraining_dataset/json:text.jsonl"}


def _some(expected: list[dict[str, Any]], together: str) -> list[dict[str, Any]]:
    """Packing leaves out what does not fill a row."""
    found = [row for row in expected if row["text"] in together]
    assert len(found) > len(expected) / 3
    return found


def test_held_out_rows_are_not_dispersed_with_packed_instructions(
    workspace: Workspace, axolotl_train: Callable[[Path], None], trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    held: list[int] = []
    train = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self, *a, **k: (held.append(len(self.eval_dataset)), train(self))[1])
    write_jsonl(Path("held.jsonl"), sft_rows(9, start=200))
    axolotl_train(
        workspace.config(
            **{**STREAMED, "disperse_cluster": 2, "max_steps": 1},
            datasets=[{"path": "json", "data_files": "sft.jsonl", "type": "alpaca"}],
            test_datasets=[{"path": "held.jsonl", "type": "alpaca", "split": "train"}],
            sample_packing=True,
            eval_sample_packing=False,
            micro_batch_size=1,
        )
    )
    assert held == [9]
    expected = own(sft_rows(24), 2)
    found = [row for row in sft_rows(24) if row["output"] in " ".join(trained)]
    assert found
    assert all(row in expected for row in found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"disperse_strategy": "kmeans"}, "disperse_strategy: kmeans has to see all rows"),
        ({"disperse_strategy": "column", "disperse_column": "source"}, "leave out streaming, or disperse without it"),
        ({"disperse_balanced": True}, "disperse_balanced: true has to see all rows"),
        ({"disperse_assignment": "a"}, "no assignment is made or read: leave the key out"),
        ({"pretraining_dataset": "text.jsonl", "disperse_first_turn": True}, "no first turn to be cut to"),
        ({"pretraining_dataset": [{"path": "a"}, {"path": "b"}]}, "reads the first one only"),
    ],
)
def test_what_cannot_be_streamed(changes: dict[str, Any], said: str) -> None:
    given = {"streaming": True, "disperse_clusters": 4, "disperse_cluster": 1}
    assert read_settings(given, where="a.yaml").cluster == 1
    with pytest.raises(UntaxError) as error:
        read_settings({**given, **changes}, where="a.yaml")
    assert said in str(error.value)


def test_preference_data_are_never_streamed() -> None:
    """Axolotl loads them as a whole, whatever ``streaming`` says."""
    given = {"streaming": True, "rl": "dpo", "disperse_clusters": 4, "disperse_cluster": 1, "disperse_assignment": "a"}
    assert read_settings(given, where="a.yaml").assignment == "a"


def test_a_loader_that_is_not_known(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from axolotl.common import datasets as loading
    from axolotl.utils.dict import DictDefault

    from untax.data.streamed import load_streamed

    monkeypatch.setattr(loading, "load_datasets", lambda cfg: object())
    cfg = DictDefault({"streaming": True, "datasets": [{"path": "sft.jsonl", "type": "alpaca"}]})
    with pytest.raises(UntaxError, match="Only 0 of 1 streams"):
        load_streamed(cfg, lambda stream: stream)
