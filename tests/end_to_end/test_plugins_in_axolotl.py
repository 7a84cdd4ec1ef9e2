"""The commands a user types, each in a process of its own: `axolotl train`, `axolotl preprocess`, `untax disperse`."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from toys import Workspace

DISPERSED: dict[str, Any] = {
    "plugins": ["untax.DispersePlugin", "untax.DeltaPenaltyPlugin"],
    "delta_l1": 0.001,
    "disperse_clusters": 2,
    "disperse_cluster": 0,
    "disperse_assignment": "outputs/disperse/assignment.parquet",
}


def train(workspace: Workspace, config: Path, **environment: str) -> Any:
    return workspace.run("axolotl", "train", str(config), "--launcher", "python", **environment)


def digest(folder: str) -> str:
    return hashlib.sha256(Path(folder, "adapter_model.safetensors").read_bytes()).hexdigest()


def test_two_trainings_started_at_once_share_one_assignment_and_repeat_to_the_byte(workspace: Workspace) -> None:
    """Cluster 0 twice, in two processes with different hash seeds, on an assignment that does not exist yet."""
    configs = [workspace.config(f"{name}.yaml", **DISPERSED, output_dir=name) for name in ("one", "two")]
    with ThreadPoolExecutor() as pool:
        runs = list(
            pool.map(lambda job: train(workspace, job[0], PYTHONHASHSEED=job[1]), zip(configs, "17", strict=True))
        )
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr[-2000:] + runs[1].stderr[-2000:]
    assert digest("one") == digest("two")
    one, two = workspace.manifest("one"), workspace.manifest("two")
    assert one["disperse"] == two["disperse"]
    assert one["penalty"] == two["penalty"]
    assert one["penalty"]["steps_penalised"] == one["training"]["steps"] == 2
    assert one["command"][1:3] == ["train", str(configs[0])]
    assert len(list(Path("outputs/disperse/clusters").iterdir())) == 2


@pytest.mark.slow
def test_dpo_repeats_to_the_byte(workspace: Workspace) -> None:
    for name, hash_seed in (("one", "1"), ("two", "7")):
        config = workspace.config(f"{name}.yaml", dpo=True, plugins=["untax.ManifestPlugin"], output_dir=name)
        run = train(workspace, config, PYTHONHASHSEED=hash_seed)
        assert run.returncode == 0, run.stderr[-2000:]
    assert digest("one") == digest("two")
    assert workspace.manifest("one")["training"]["kind"] == "dpo"


def test_an_error_is_one_plain_message(workspace: Workspace) -> None:
    config = workspace.config(**{**DISPERSED, "disperse_cluster": 2, "delta_l1": None})
    run = train(workspace, config)
    assert run.returncode == 2
    assert "disperse_cluster: 2 is out of range" in run.stderr
    assert str(config) in run.stderr
    assert "Traceback" not in run.stderr + run.stdout
    assert not Path("outputs").exists()


@pytest.mark.slow
def test_preprocess_one_cluster_then_train_another(workspace: Workspace) -> None:
    first = workspace.run("axolotl", "preprocess", str(workspace.config("0.yaml", **DISPERSED)))
    assert first.returncode == 0, first.stderr[-2000:]
    run = train(workspace, workspace.config("1.yaml", **{**DISPERSED, "disperse_cluster": 1}))
    assert run.returncode == 0, run.stderr[-2000:]
    section = workspace.manifest()["disperse"]
    assert workspace.manifest()["training"]["rows"] == section["rows"] == section["sizes"][1]


def test_untax_disperse(workspace: Workspace) -> None:
    run = workspace.run("untax", "disperse", str(workspace.config(**DISPERSED)))
    assert run.returncode == 0, run.stderr
    assert "outputs/disperse/assignment.parquet: made" in run.stdout
    assert run.stderr == ""
