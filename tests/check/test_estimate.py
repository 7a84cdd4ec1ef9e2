"""Steps, tokens, hours and shapes of trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from untax.check.axolotl_rows import Tokens
from untax.check.estimate import estimate, shape_of
from untax.check.lengths import Lengths, Part, measure
from untax.check.trainings import Training
from untax.recipes.cost.known import KNOWN, LLAMA2_7B
from untax.recipes.cost.time import training_hours
from untax.recipes.graph import Node
from untax.recipes.presets.bases import BASES

KEYS: dict[str, Any] = {
    "adapter": "lora",
    "lora_target_linear": True,
    "sequence_len": 100,
    "micro_batch_size": 2,
    "num_epochs": 3,
    "bf16": True,
}


def training(gpus: int = 1, **changes: Any) -> Training:
    node = Node("sft", "train", ("axolotl", "train", "sft.yaml"), ("outputs/sft",), "sft.yaml", gpus=gpus)
    return Training(node, {**KEYS, **changes}, "base")


def lengths(rows: int = 40, length: int = 50) -> Lengths:
    return measure([Part([Tokens(length, length, 5)] * rows, 1.0)], limit=100, strategy="drop")


@pytest.mark.parametrize(
    ("changes", "steps", "tokens"),
    [
        ({}, 60, 6000),
        ({"max_steps": 10}, 10, 1000),
        ({"val_set_size": 0.25}, 45, 4500),
        ({"val_set_size": 10}, 45, 4500),
        ({"gradient_accumulation_steps": 4}, 15, 6000),
        # 2,000 tokens are 22 packed rows of 95 tokens.
        ({"sample_packing": True}, 33, 6000),
        ({"rl": "dpo", "sample_packing": True}, 60, 6000),
    ],
)
def test_steps_and_tokens(changes: dict[str, Any], steps: int, tokens: int) -> None:
    found, _ = estimate(training(**changes), lengths(), LLAMA2_7B, [], "cuda")
    assert (found.steps, found.tokens) == (steps, tokens)


def test_two_gpus_halve_the_steps() -> None:
    one, two = (estimate(training(gpus), lengths(), LLAMA2_7B, [], "cuda")[0] for gpus in (1, 2))
    assert (one.steps, two.steps) == (60, 30)
    assert one.hours is not None
    assert two.hours is not None
    assert two.hours["A100"] == pytest.approx(one.hours["A100"] / 2)
    from untax.recipes.cost.hardware import DEFAULT_GPU

    assert one.hours["A100"] == training_hours(LLAMA2_7B, 6000, KEYS, DEFAULT_GPU, length=50)


def test_a_cpu_has_no_hours() -> None:
    found, _ = estimate(training(2), lengths(), LLAMA2_7B, [], "cpu")
    assert (found.hours, found.gpus) == (None, 1)


def test_without_lengths_and_shape() -> None:
    found, findings = estimate(training(), None, None, [], "cuda")
    assert (found.steps, found.tokens, found.memory, found.hours, findings) == (None, None, None, None, [])


def test_methods_without_an_estimate() -> None:
    found, findings = estimate(training(rl="grpo"), lengths(), LLAMA2_7B, [], "cuda")
    assert found.memory is None
    assert [finding.state for finding in findings] == ["unknown"]


@pytest.mark.parametrize(("warmup", "noted"), [(29, False), (30, True)])
def test_warmup(warmup: int, noted: bool) -> None:
    _, findings = estimate(training(warmup_steps=warmup), lengths(), LLAMA2_7B, [], "cuda")
    assert any("learning rate rises" in finding.text for finding in findings) == noted


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_bases_of_the_presets_are_known(base: Any, tmp_path: Path) -> None:
    shape, findings = shape_of(base.path, tmp_path)
    assert shape == base.architecture
    assert findings == []
    assert shape == KNOWN.get(base.path, shape)
