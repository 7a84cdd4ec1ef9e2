"""Operations against torch's own counter, steps against Axolotl's rounding."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untax.errors import UntaxError
from untax.recipes.cost.architecture import from_config
from untax.recipes.cost.hardware import DEFAULT_GPU, GPUS, gpu_named
from untax.recipes.cost.known import LLAMA2_7B
from untax.recipes.cost.time import training_flops, training_hours, training_steps, warmup_steps

from .models import ALL, MLP, model

LORA = {"adapter": "lora", "lora_r": 4, "lora_target_modules": ALL}
ROWS, LENGTH = 2, 96


def counted(keys: dict[str, Any]) -> tuple[float, Any]:
    """What torch counts in the matrix products of a step, eagerly, so that all pairs of tokens count."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    made = model(3, keys=keys, attention="eager")
    if keys.get("adapter"):
        # Else the first layer has no derivative of its input, which does not count in a model of many layers.
        made.enable_input_require_grads()
    ids = torch.zeros((ROWS, LENGTH), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        made(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return counter.get_total_flops(), from_config(made.config.to_dict())


@pytest.mark.parametrize(
    "keys",
    [
        LORA,
        {**LORA, "lora_target_modules": MLP},
        {**LORA, "gradient_checkpointing": True},
        {},
        {"gradient_checkpointing": True},
    ],
    ids=["lora", "lora on the MLP", "lora, checkpointing", "full", "full, checkpointing"],
)
def test_flops(keys: dict[str, Any]) -> None:
    found, architecture = counted(keys)
    # Half of all pairs are assumed to be computed; the counter sees all: as if rows were twice as long.
    expected = training_flops(architecture, ROWS * LENGTH, keys, length=2 * LENGTH)
    if not keys:
        assert expected == pytest.approx(found, rel=1e-4)
    # Checkpointing leaves out the end of a layer that nothing of the backward pass needs.
    assert expected == pytest.approx(found, rel=0.06 if keys.get("gradient_checkpointing") else 0.01)


def test_more_forwards() -> None:
    """DPO's reference is one forward pass more, KTO's passes are three, ORPO's none."""
    plain, dpo, kto, orpo = (
        training_flops(LLAMA2_7B, 1, {**LORA, **rl}, length=1)
        for rl in ({}, {"rl": "dpo"}, {"rl": "kto"}, {"rl": "orpo"})
    )
    forward = dpo - plain
    assert forward == pytest.approx(2 * LLAMA2_7B.multiplied(), rel=0.001)
    assert kto - plain == pytest.approx(3 * forward)
    assert orpo == plain


def test_hours() -> None:
    """A billion tokens of full fine-tuning of 7B: six operations per weight and token, and the scores of tokens."""
    h100 = gpu_named("NVIDIA H100 80GB HBM3")
    assert h100 is not None
    hours = training_hours(LLAMA2_7B, 1e9, {"sequence_len": 2048}, h100, utilisation=0.5)
    assert hours == pytest.approx(6 * 6.607e9 * 1e9 / (0.5 * 989e12) / 3600, rel=0.06)
    assert training_hours(LLAMA2_7B, 1e9, {"sequence_len": 2048}, h100, gpus=8, utilisation=0.5) == pytest.approx(
        hours / 8
    )
    with pytest.raises(UntaxError, match="rl: grpo"):
        training_hours(LLAMA2_7B, 1e9, {"rl": "grpo"}, h100)


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("Tesla T4", None),
    ],
)
def test_names_of_gpus(driver: str, name: str | None) -> None:
    found = gpu_named(driver)
    assert (found.name if found else None) == name
    assert DEFAULT_GPU in GPUS


@given(
    rows=st.integers(1, 500),
    micro=st.integers(1, 8),
    accumulation=st.integers(1, 8),
    epochs=st.integers(1, 4),
)
def test_steps(rows: int, micro: int, accumulation: int, epochs: int) -> None:
    """As a loop over the batches of a data loader that keeps the last, smaller batch counts them."""
    batches = len(range(0, rows, micro))
    keys = {"micro_batch_size": micro, "gradient_accumulation_steps": accumulation, "num_epochs": epochs}
    assert training_steps(rows, keys) == len(range(0, batches, accumulation)) * epochs
    assert training_steps(rows, {**keys, "max_steps": 1}) == 1


def test_warmup() -> None:
    """As Axolotl: steps before a share of them, 3% and 100 at most without either, and two instead of one."""
    assert warmup_steps(90, {"warmup_steps": 7, "warmup_ratio": 0.5}) == 7
    assert warmup_steps(90, {"warmup_steps": 0}) == 0
    assert warmup_steps(95, {"warmup_ratio": 0.1}) == 9
    assert warmup_steps(200, {}) == 6
    assert warmup_steps(10**6, {}) == 100
    assert warmup_steps(40, {}) == 2
