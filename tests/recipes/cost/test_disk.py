"""Bytes on disk, part by part, and those of a dataset that Axolotl prepared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from untax.recipes.cost.disk import Disk, folder_disk, merged_disk, training_disk
from untax.recipes.cost.known import LLAMA2_7B, read_architecture

LORA: dict[str, Any] = {
    "adapter": "lora",
    "lora_r": 16,
    "lora_target_modules": ["gate_proj", "up_proj", "down_proj"],
    "bf16": "auto",
}
FACTORS = 32 * 16 * 3 * (4096 + 11008)


def test_adapter_and_checkpoints() -> None:
    """A checkpoint has the adapter and two states of each of its weights, all in fp32."""
    no = training_disk(LLAMA2_7B, {**LORA, "save_strategy": "no"})
    assert no == Disk(results=4 * FACTORS)
    one = training_disk(LLAMA2_7B, {**LORA, "saves_per_epoch": 1, "save_total_limit": 1, "num_epochs": 3})
    assert one == Disk(results=4 * FACTORS, checkpoints=12 * FACTORS)


@pytest.mark.parametrize(
    ("keys", "count"),
    [
        ({"num_epochs": 3}, 3),
        ({"num_epochs": 9}, 4),
        ({"num_epochs": 3, "saves_per_epoch": 2, "save_total_limit": 5}, 5),
        ({"save_steps": 100, "save_strategy": "steps"}, 4),
        ({"max_steps": 5}, 1),
    ],
)
def test_checkpoints_that_stay(keys: dict[str, Any], count: int) -> None:
    assert training_disk(LLAMA2_7B, {**LORA, **keys}).checkpoints == count * 12 * FACTORS


def test_base_beside_the_adapter() -> None:
    """DPO and KTO write the whole base too; ORPO does not, nor does full fine-tuning beside its own weights."""
    size = 2 * LLAMA2_7B.parameters()
    for rl, copy in (("dpo", size), ("kto", size), ("orpo", 0), (None, 0)):
        assert training_disk(LLAMA2_7B, {**LORA, "rl": rl}).base_copies == copy
    full = training_disk(LLAMA2_7B, {"bf16": True, "rl": "dpo", "save_strategy": "no"})
    assert full == Disk(results=size)


def test_folder() -> None:
    """Four clusters and a merge in bf16 of a model with four bytes less than 27 GB in fp32."""
    trainings = [{**LORA, "save_strategy": "no"}] * 4
    disk = folder_disk(LLAMA2_7B, trainings, ["bfloat16", "float32"], tokens=1000)
    assert disk.results == 16 * FACTORS
    assert disk.merged == 6 * 6_738_415_616 == merged_disk(LLAMA2_7B, "float32").total * 3 // 2
    assert disk.total == disk.results + disk.merged + disk.prepared


def test_what_a_real_training_leaves(workspace: Any, axolotl_train: Callable[[Path], None]) -> None:
    from datasets import load_from_disk

    config = workspace.config(save_strategy=None, num_epochs=1, max_steps=3)
    axolotl_train(config)
    files = {path: path.stat().st_size for path in (workspace.folder / "out").rglob("*") if path.is_file()}
    keys = yaml.safe_load(config.read_text())
    shape = read_architecture(Path(keys["base_model"]) / "config.json")
    disk = training_disk(shape, keys)
    adapters = [size for path, size in files.items() if path.name == "adapter_model.safetensors"]
    states = [size for path, size in files.items() if path.name == "optimizer.pt"]
    assert (len(adapters), len(states)) == (2, 1)
    # Names and shapes of many tensors take a good part of such small files.
    assert disk.results == pytest.approx(adapters[0], rel=0.2)
    assert disk.checkpoints == pytest.approx(adapters[0] + states[0], rel=0.35)
    prepared = next((workspace.folder / "prepared").rglob("dataset_info.json")).parent
    tokens = sum(map(len, load_from_disk(str(prepared))["input_ids"]))
    arrow = sum(path.stat().st_size for path in prepared.glob("*.arrow"))
    assert training_disk(shape, keys, tokens=tokens).prepared == pytest.approx(arrow, rel=0.1)
