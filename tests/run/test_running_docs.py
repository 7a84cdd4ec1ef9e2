"""What docs/running.md says of Ray and of costs, against the code and the script that it comes from."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from untax.run import ray_task
from untax.run.ray_workers import PASSED

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs/running.md").read_text(encoding="utf-8")


def block(language: str, word: str) -> str:
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return next(text for text in blocks if word in text)


@pytest.fixture(scope="module")
def cost() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_cost", REPOSITORY / "benchmarks/cost.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_what_the_script_computes_now(cost):
    assert cost.tables() in PAGE


def test_traffic_by_hand(cost):
    lora7, full7, _, full70 = cost.SETTINGS
    factors = 32 * 3 * 16 * (4096 + 11008)
    assert lora7.gradient == 4 * factors
    assert lora7.sent(4) == pytest.approx(2 * 3 / 4 * 4 * factors)
    assert lora7.sent(1) == 0
    weights = 2 * 6_738_415_616  # Llama-2-7B, as its model card's safetensors count it
    assert full7.sent(8) == pytest.approx(7 / 8 * 3 * weights)
    assert full70.gradient == 2 * 68_976_648_192
    assert full70.steps * full70.batch == 3 * 326_154


def test_memory_of_sharded_settings_fits_the_gpu_that_hours_are_for(cost):
    for setting in cost.SETTINGS:
        assert setting.held(cost.K * setting.gpus) < setting.held(setting.gpus) < cost.H100.memory


def test_the_merge_rate_is_of_the_committed_measurement(cost):
    assert cost.merge_rate() == pytest.approx((2_358_249_448 + 2_200_144_270) / (7.31 - 2.14))


def test_the_rayjob_is_of_the_version_that_is_pinned():
    job: dict[str, Any] = yaml.safe_load(block("yaml", "RayJob"))
    pin = re.search(r"^ray==(\S+)", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert pin is not None
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pin[1]
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    claims = [
        part["template"]["spec"]["volumes"][0] for part in (job["spec"]["rayClusterSpec"]["headGroupSpec"], group)
    ]
    assert claims[0] == claims[1]
    assert group["minReplicas"] == group["replicas"]


def test_the_batch_script_is_a_script_and_its_ray_options_exist():
    script = block("bash", "#SBATCH")
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    ray = Path(sys.executable).parent / "ray"
    helped = "".join(
        subprocess.run([ray, command, "--help"], capture_output=True, text=True, check=True).stdout
        for command in ("symmetric-run", "start")
    )
    command = script.partition("ray symmetric-run")[2].partition(" -- ")[0]
    options = re.findall(r"--[a-z-]+", command)
    assert {"--address", "--min-nodes", "--num-gpus"} <= set(options)
    assert [option for option in options if option not in helped] == []


def test_numbers_and_names_of_the_ray_engine():
    words = " ".join(PAGE.split())
    assert set(re.findall(r"`([A-Z]+_)`", PAGE)) == set(PASSED)
    assert ray_task.MOST_ATTEMPTS == 4
    assert "up to four times in all" in words
    assert f"waits for it up to {ray_task.CLAIM_SECONDS:.0f} seconds" in words
