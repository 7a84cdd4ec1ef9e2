"""The formula of what a layer keeps, against what torch's autograd really keeps of transformers' and PEFT's layers."""

from __future__ import annotations

from typing import Any

import pytest

from untax.recipes.cost.activations import Step, kept, layer
from untax.recipes.cost.architecture import from_config
from untax.recipes.cost.trained import trained

from .models import ALL, MLP, model, saved_bytes

ROWS, LENGTH = 2, 384
LORA = {"adapter": "lora", "lora_r": 4, "lora_target_modules": ALL}
DROPOUT = {**LORA, "lora_dropout": 0.05}


def measured(layers: int, *, masked: bool, **settings: Any) -> int:
    """Bytes that a forward pass keeps of one layer: those of a model of one layer more, less those of one without."""
    import torch

    def bytes_of(count: int) -> int:
        made = model(count, **settings)
        ids = torch.randint(0, 250, (ROWS, LENGTH))
        mask = torch.ones_like(ids)
        if masked:
            mask[0, -7:] = 0
        with (
            saved_bytes(made) as total,
            torch.autocast("cpu", torch.bfloat16, enabled=bool(settings.get("half"))),
        ):
            output = made(input_ids=ids, attention_mask=mask, use_cache=False)
        del output
        return total[0]

    return bytes_of(layers + 1) - bytes_of(layers)


CASES = {
    "lora": ({}, LORA),
    "lora with dropout": ({}, DROPOUT),
    "lora on the MLP with dropout": ({}, {**DROPOUT, "lora_target_modules": MLP}),
    "lora on two": ({}, {**LORA, "lora_target_modules": ["q_proj", "v_proj"]}),
    "full": ({}, {}),
    "checkpointing": ({}, {**LORA, "gradient_checkpointing": True}),
    "full, checkpointing": ({}, {"gradient_checkpointing": True}),
    "eager": ({"attention": "eager"}, LORA),
    "masked": ({"masked": True}, LORA),
    "qwen3": ({"kind": "qwen3"}, LORA),
    "qwen3, full": ({"kind": "qwen3"}, {}),
    "olmo2": ({"kind": "olmo2"}, LORA),
    "gemma2": ({"kind": "gemma2"}, LORA),
}


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("settings", "keys"), CASES.values(), ids=CASES.keys())
def test_layer(settings: dict[str, Any], keys: dict[str, Any], half: bool) -> None:
    settings = {"masked": False, **settings}
    found = measured(2, keys=keys, half=half, **settings)
    made = model(2, keys=keys, half=half, kind=settings.get("kind", "llama"))
    attention = "sdpa" if settings["masked"] else settings.get("attention", "flash")
    step = Step(ROWS, LENGTH, 2 if half else 4, 4, attention, bool(keys.get("gradient_checkpointing")))
    architecture = from_config(made.config.to_dict())
    what = trained(architecture, keys)
    expected = kept(architecture, what, step) // architecture.layers
    assert expected == pytest.approx(found, rel=0.04)
    if not step.checkpointing:
        assert expected == layer(architecture, what, step)


def test_mask_of_dropout_is_a_byte_on_a_gpu() -> None:
    """What a CPU keeps of dropout is four bytes wide; the formula differs in nothing else."""
    architecture = from_config(model(1, keys={}).config.to_dict())
    what = trained(architecture, DROPOUT)
    gpu, cpu = (layer(architecture, what, Step(1, 1, 2, width)) for width in (1, 4))
    assert cpu - gpu == 3 * sum(linear.inputs for linear in what.adapted)
