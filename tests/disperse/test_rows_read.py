"""The rows of a cluster, from the assignment to the trainer, in real trainings: counted and proven, no false alarms."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from toys import DPO_CHANGES, Workspace, sft_rows, write_jsonl
from untax.manifest import read_manifest
from untax.run.proof import missing_proof

KEYS: dict[str, Any] = {
    "plugins": ["untax.DispersePlugin"],
    "disperse_clusters": 2,
    "disperse_cluster": 1,
    "disperse_assignment": "outputs/disperse/assignment.parquet",
    "max_steps": 2,
}


def long_rows() -> list[dict[str, Any]]:
    """Rows of which every third is longer than a training row may be."""
    return [{**row, "output": row["output"] * (60 if index % 3 == 0 else 1)} for index, row in enumerate(sft_rows(24))]


@pytest.mark.parametrize(
    ("changes", "rows", "held_out"),
    [
        ({}, "all", 0),
        ({"sample_packing": True, "eval_sample_packing": False, "pad_to_sequence_len": True}, "all", 0),
        ({"val_set_size": 0.25}, "split", None),
        ({"datasets": [{"path": "long.jsonl", "type": "alpaca"}]}, "fewer", 0),
        (DPO_CHANGES, "all", 0),
    ],
)
def test_rows_from_the_assignment_to_the_trainer(
    workspace: Workspace,
    axolotl_train: Callable[[Path], None],
    changes: dict[str, Any],
    rows: str,
    held_out: int | None,
) -> None:
    write_jsonl(Path("long.jsonl"), long_rows())
    config = workspace.config(**{**changes, **KEYS})
    axolotl_train(config)
    manifest, content = workspace.manifest(), yaml.safe_load(config.read_text())
    section, training = manifest["disperse"], manifest["training"]
    assigned = (read_manifest(Path("outputs/disperse")) or {})["disperse"]["sizes"][1]
    assert section["rows"] == section["rows_read"] == assigned > 4
    assert sum(read["rows"] for read in section["trained_on"]) == assigned
    trained = training["rows"] + training["rows_held_out"]
    assert trained < assigned if rows == "fewer" else trained == assigned
    assert training["rows_held_out"] == held_out if held_out is not None else training["rows_held_out"] > 0
    assert missing_proof(content, manifest, output=Path("out")) is None
    changed = json.loads(json.dumps(manifest))
    changed["disperse"]["rows"] += 1
    assert "rows, and the assignment has" in str(missing_proof(content, changed))


def test_files_of_another_plugin_are_noticed(
    workspace: Workspace, axolotl_train: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another plugin rewrote the datasets after DispersePlugin did: Axolotl trains on all rows."""
    from untax.disperse.plugin import DispersePlugin

    load = DispersePlugin.load_datasets

    def rewriting(self: Any, cfg: Any, preprocess: bool = False) -> Any:
        found = load(self, cfg, preprocess)
        cfg.datasets = [type(cfg)({"path": "sft.jsonl", "type": "alpaca"})]
        return found

    monkeypatch.setattr(DispersePlugin, "load_datasets", rewriting)
    config = workspace.config(**KEYS)
    axolotl_train(config)
    said = missing_proof(yaml.safe_load(config.read_text()), workspace.manifest())
    assert "Axolotl read other files than those of its cluster" in str(said)
