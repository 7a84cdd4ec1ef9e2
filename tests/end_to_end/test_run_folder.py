"""`untax run` on a small recipe with every kind of node: the real axolotl train, mergekit and lm-eval."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from untax.manifest import digest_model

UNTAX = Path(sys.executable).parent / "untax"


def manifest(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "outputs" / name / "untax.json").read_text())


def test_every_training_proves_what_it_did(finished: Path):
    sizes = manifest(finished, "disperse")["disperse"]["sizes"]
    assert sum(sizes) == 64
    for cluster in range(2):
        made = manifest(finished, f"cluster-{cluster}")
        assert (made["disperse"]["cluster"], made["disperse"]["rows"]) == (cluster, sizes[cluster])
        assert made["training"]["rows"] == sizes[cluster]
    sparse = manifest(finished, "sft-sparse")
    assert sparse["penalty"]["l1"] == 0.001
    assert sparse["penalty"]["steps_penalised"] == sparse["training"]["steps"] == 32
    assert manifest(finished, "sft")["training"]["rows"] == 64
    assert manifest(finished, "dpo")["training"]["kind"] == "dpo"


def test_arms_json_has_a_row_per_model_with_the_scored_weights(finished: Path):
    rows = json.loads((finished / "results/arms.json").read_text())
    expected = {("base", 0.0): "base", ("vanilla", 1.0): "outputs/vanilla", ("dtm", 1.0): "outputs/dtm"}
    expected |= {("dtm", 0.5): "outputs/dtm-0.5", ("paft", 1.0): "outputs/paft-ties"}
    assert {(row["arm"], row["scale"]) for row in rows} == set(expected)
    for row in rows:
        assert set(row) == {
            *("arm", "scale", "gain", "gain_stderr", "preference", "preference_stderr", "tax", "tax_stderr", "digest"),
        }
        assert row["digest"] == digest_model(finished / expected[row["arm"], row["scale"]])
    by_arm = {(row["arm"], row["scale"]): row for row in rows}
    assert by_arm["base", 0.0]["tax"] == 0
    assert by_arm["vanilla", 1.0]["gain"] < by_arm["base", 0.0]["gain"]
    assert by_arm["dtm", 0.5]["tax"] < by_arm["dtm", 1.0]["tax"]


def test_a_second_run_starts_nothing(finished: Path, untax):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("outputs/**/*") if path.is_file()}
    said = untax("run", finished).stdout
    assert said.count("finished before") == int(said.split(" nodes in ")[0])
    assert {path: path.stat().st_mtime_ns for path in finished.glob("outputs/**/*") if path.is_file()} == before


def test_dry_run_of_a_finished_folder(finished: Path, untax):
    assert untax("run", finished, "--dry-run").stdout.startswith("0 of ")


def test_stock_mergekit_gives_the_same_weights(finished: Path, tmp_path: Path):
    """The generated YAMLs are stock: mergekit-yaml accepts them as they are, and differs by fp32 roundings only."""
    from safetensors.torch import load_file

    program = Path(sys.executable).parent / "mergekit-yaml"
    for name in ("dtm-0.5", "paft-ties"):
        out = tmp_path / name
        command = [program, f"mergekit_configs/{name}.yaml", out, "--lora-merge-cache", tmp_path / "cache"]
        subprocess.run(command, cwd=finished, check=True, capture_output=True, timeout=300)
        stock, ours = (load_file(folder / "model.safetensors") for folder in (out, finished / "outputs" / name))
        assert stock.keys() == ours.keys()
        for tensor in stock:
            apart = (stock[tensor] - ours[tensor]).abs() > 1e-6 * stock[tensor].abs().max()
            # TIES drops other elements where two magnitudes are equal but for roundings.
            assert apart.float().mean() <= (1e-3 if "ties" in name else 0), tensor


def test_a_killed_run_continues_to_the_same_weights(finished: Path, tmp_path: Path, digests, make_run_folder, untax):
    folder = make_run_folder(tmp_path / "run", suite=None, arms=("vanilla", "dtm"))
    log = folder / ".untax/logs/sft.log"
    with subprocess.Popen([UNTAX, "run", folder], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as runner:
        _wait(lambda: log.exists() and "Starting trainer" in log.read_text(), 180)
        runner.kill()
    with subprocess.Popen([UNTAX, "run", folder], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as runner:
        _wait(lambda: (folder / "outputs/sft/untax.json").exists(), 300)
        runner.send_signal(signal.SIGINT)
        assert runner.wait(60) == 130
    untax("run", folder)
    names = ("vanilla", "average", "average-0.5")  # an arm that is alone names its merges by method
    made, undisturbed = digests(folder), digests(finished)
    assert [made[name] for name in names] == [undisturbed[name] for name in ("vanilla", "dtm", "dtm-0.5")]


def _wait(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)


def test_a_yaml_that_lost_its_plugin_stops_the_run_before_it_starts(finished: Path, tmp_path: Path, untax):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "recipes/sft-sparse.yaml"
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "plugins": ["untax.ManifestPlugin"]}))
    done = untax("run", folder, check=False)
    assert done.returncode == 2
    assert "recipes/sft-sparse.yaml" in done.stderr
    assert "untax.DeltaPenaltyPlugin is not listed under plugins" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stdout == ""


def test_a_manifest_that_does_not_prove_the_penalty_trains_again(finished: Path, tmp_path: Path, untax):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "outputs/sft-sparse/untax.json"
    content = json.loads(path.read_text())
    del content["penalty"]
    path.write_text(json.dumps(content))
    said = untax("run", folder, "--dry-run").stdout
    assert "does not prove that DeltaPenaltyPlugin ran" in said
    assert "paft-ties: untax merge" in said
    assert said.strip().endswith("1 of 14 nodes would run, 2 more if what they read changes.")


def test_two_runners_on_one_folder(finished: Path, untax):
    from untax.run.lock import folder_lock

    with folder_lock(finished / ".untax/lock"):
        done = untax("run", finished, check=False)
    assert done.returncode == 2
    assert str(os.getpid()) in done.stderr


@pytest.mark.slow
def test_the_demo_twice_gives_the_same_weights(tmp_path: Path, digests, untax):
    for name in ("first", "second"):
        untax("demo", "--out", tmp_path / name)
    assert digests(tmp_path / "first") == digests(tmp_path / "second")
    assert len(digests(tmp_path / "first")) == 13
