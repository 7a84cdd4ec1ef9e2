"""Axolotl preprocesses and trains exactly the asked-for cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from toys import Workspace, preference_rows, sft_rows, write_jsonl
from untax.data.corpus import entries_digest
from untax.manifest import digest_file, read_manifest

ASSIGNMENT = "outputs/disperse/assignment.parquet"
KEYS: dict[str, Any] = {
    "plugins": ["untax.DispersePlugin"],
    "disperse_clusters": 3,
    "disperse_assignment": ASSIGNMENT,
    "max_steps": 1,
}


def assigned(rows: list[dict[str, Any]], cluster: int) -> list[dict[str, Any]]:
    table = pq.read_table(ASSIGNMENT).to_pydict()
    return [row for row, own in zip(rows, table["cluster"], strict=True) if own == cluster]


def test_training_one_cluster_after_preprocessing_another(
    workspace: Workspace,
    axolotl_train: Callable[[Path], None],
    axolotl_preprocess: Callable[[Path], None],
    seen: list[list[str]],
) -> None:
    axolotl_preprocess(workspace.config("0.yaml", **KEYS, disperse_cluster=0, output_dir="out-0"))
    axolotl_train(workspace.config("1.yaml", **KEYS, disperse_cluster=1, output_dir="out-1"))
    axolotl_train(workspace.config("0.yaml", **KEYS, disperse_cluster=0, output_dir="out-0"))
    for trained, cluster in zip(seen, (1, 0), strict=True):
        expected = assigned(sft_rows(24), cluster)
        assert len(trained) == len(expected) > 1
        for row in expected:
            assert sum(row["output"] in text and row["instruction"] in text for text in trained) == 1
    section = workspace.manifest("out-1")["disperse"]
    assert section["cluster"] == 1
    assert section["rows"] == section["sizes"][1] == len(assigned(sft_rows(24), 1))
    assert workspace.manifest("out-1")["training"]["rows"] == section["rows"]
    assert workspace.manifest("out-0")["disperse"]["assignment"] == section["assignment"]
    inputs = workspace.manifest("out-1")["inputs"]
    assert set(inputs) == {"base", "tokenizer", "datasets/sft.jsonl"}
    assert inputs["datasets/sft.jsonl"] == digest_file(Path("sft.jsonl"))
    assert [name for name in section["files"] if "cluster-1-of-3" in name]
    written = yaml.safe_load(Path("1.yaml").read_text())["datasets"]
    assert (read_manifest(Path(ASSIGNMENT).parent) or {})["disperse"]["entries"] == entries_digest(written)


def test_a_changed_file_under_the_same_name_is_refused_and_not_trained_from_the_cache(
    workspace: Workspace, axolotl_train: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    config = workspace.config(**KEYS, disperse_cluster=0)
    axolotl_train(config)
    write_jsonl(Path("sft.jsonl"), sft_rows(30, start=50))
    with pytest.raises(SystemExit) as exit_:
        axolotl_train(config)
    assert exit_.value.code == 2
    assert "made for another corpus: 24 rows" in capfd.readouterr().err


def test_preference_data(workspace: Workspace, axolotl_train: Callable[[Path], None], seen: list[list[str]]) -> None:
    axolotl_train(workspace.config("0.yaml", dpo=True, **KEYS, disperse_cluster=0, output_dir="out-0"))
    axolotl_train(workspace.config("1.yaml", dpo=True, **KEYS, disperse_cluster=1, output_dir="out-1"))
    for cluster, trained in enumerate(seen):
        expected = assigned(preference_rows(16), cluster)
        assert len(trained) == len(expected) > 1
        for row in expected:
            assert sum(row["prompt"] in text for text in trained) == 1
    assert workspace.manifest("out-1")["disperse"]["rows"] == len(seen[1])


def test_several_sources_without_an_assignment_path(
    workspace: Workspace, axolotl_train: Callable[[Path], None], seen: list[list[str]]
) -> None:
    """Without disperse_assignment the plugin keeps its own, below the prepared data."""
    write_jsonl(Path("more.jsonl"), sft_rows(20, start=100))
    datasets = [
        {"path": "sft.jsonl", "type": "alpaca"},
        {"path": "more.jsonl", "type": "alpaca", "split": "train[:10]"},
    ]
    changes = {**KEYS, "disperse_assignment": None, "datasets": datasets}
    rows: list[str] = []
    for cluster in range(3):
        axolotl_train(workspace.config(**changes, disperse_cluster=cluster))
        rows += seen[-1]
    texts = [row["output"] for row in sft_rows(24) + sft_rows(10, start=100)]
    assert len(rows) == len(texts)
    assert all(sum(text in row for row in rows) == 1 for text in texts)
    assert len(list(Path("prepared/untax").iterdir())) == 1


def test_first_turns_of_dialogues(
    workspace: Workspace, axolotl_train: Callable[[Path], None], seen: list[list[str]]
) -> None:
    dialogues = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] * 2}
        for i in range(12)
    ]
    write_jsonl(Path("talks.jsonl"), dialogues)
    write_jsonl(Path("held.jsonl"), dialogues[:3])
    write_jsonl(Path("texts.jsonl"), [{"text": f"Once there was a plain text, number {i}."} for i in range(5)])
    axolotl_train(
        workspace.config(
            plugins=["untax.DispersePlugin"],
            disperse_first_turn=True,
            datasets=[{"path": "talks.jsonl", "type": "alpaca"}, {"path": "texts.jsonl", "type": "completion"}],
            test_datasets=[{"path": "held.jsonl", "type": "alpaca", "split": "train"}],
            max_steps=1,
        )
    )
    assert sorted(text.count("Response") for text in seen[0]) == [0] * 5 + [1] * 12, "plain text stays as it is"
    assert sum("a plain text" in text for text in seen[0]) == 5
    manifest = workspace.manifest()
    assert manifest["disperse"]["clusters"] == 1
    files = {
        "datasets/talks.jsonl": "talks.jsonl",
        "datasets/texts.jsonl": "texts.jsonl",
        "test_datasets/held.jsonl": "held.jsonl",
    }
    assert {key: digest for key, digest in manifest["inputs"].items() if key not in ("base", "tokenizer")} == {
        key: digest_file(Path(name)) for key, name in files.items()
    }
