"""Memory by parts, each against a count of its own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untax.errors import UntaxError
from untax.recipes.cost.architecture import from_config
from untax.recipes.cost.known import LLAMA2_7B, MISTRAL_7B
from untax.recipes.cost.memory import OVERHEAD, training_memory
from untax.recipes.cost.trained import trained

from .models import ALL, MLP, model

LORA: dict[str, Any] = {
    "adapter": "lora",
    "lora_r": 16,
    "lora_target_modules": MLP,
    "bf16": True,
    "micro_batch_size": 4,
    "sequence_len": 1024,
    "gradient_checkpointing": True,
}
FULL = {key: value for key, value in LORA.items() if not key.startswith("lora") and key != "adapter"}


@pytest.mark.parametrize(
    "keys",
    [
        {"lora_target_modules": ALL},
        {"lora_target_modules": MLP},
        {"lora_target_modules": ["q_proj", "lm_head", "embed_tokens"]},
        {"lora_target_modules": r"model\.layers\.\d+\.(mlp|self_attn)\.(up|down|q)_proj"},
        {"lora_target_modules": ["q_proj"], "lora_modules_to_save": ["lm_head"]},
        {"lora_target_linear": True},
    ],
)
def test_trained_weights(keys: dict[str, Any]) -> None:
    """As PEFT counts them."""
    from peft import LoraConfig, get_peft_model

    made = model(2, keys={})
    architecture = from_config(made.config.to_dict())
    keys = {"adapter": "lora", "lora_r": 4, **keys}
    targets = keys.get("lora_target_modules", "all-linear")
    adapted = get_peft_model(
        made,
        LoraConfig(
            r=4, target_modules=targets, modules_to_save=keys.get("lora_modules_to_save"), task_type="CAUSAL_LM"
        ),
    )
    assert trained(architecture, keys).parameters(architecture) == adapted.get_nb_trainable_parameters()[0]


def test_broken_pattern() -> None:
    with pytest.raises(UntaxError, match="no pattern"):
        trained(LLAMA2_7B, {**LORA, "lora_target_modules": "(q_proj"})


def test_lora_parts() -> None:
    """Table 10's adapter on Llama-2-7B: r = 16 on three matrices of 32 layers; factors and states in fp32."""
    factors = 32 * 16 * 3 * (4096 + 11008)
    memory = training_memory(LLAMA2_7B, LORA)
    assert memory.weights == 2 * LLAMA2_7B.parameters()
    assert (memory.adapter, memory.gradients, memory.optimizer) == (4 * factors, 4 * factors, 8 * factors)
    assert memory.activations == 32 * 4 * 1024 * 4096 * 2
    assert (memory.reference, memory.penalty, memory.overhead) == (0, 0, OVERHEAD)
    assert training_memory(LLAMA2_7B, LORA, "cpu").overhead == 0
    assert sum(memory.parts().values()) == memory.total + min(memory.logits, memory.backward)


def test_full_fine_tuning() -> None:
    """Weights in bf16, and gradients and Adam's two states as wide; DPO's reference is a second copy."""
    count = LLAMA2_7B.parameters()
    memory = training_memory(LLAMA2_7B, FULL)
    assert (memory.weights, memory.adapter) == (2 * count, 0)
    assert (memory.gradients, memory.optimizer) == (2 * count, 4 * count)
    assert training_memory(LLAMA2_7B, {**FULL, "rl": "dpo"}).reference == 2 * count
    assert training_memory(LLAMA2_7B, {**LORA, "rl": "dpo"}).reference == 0
    assert training_memory(LLAMA2_7B, {**FULL, "rl": "orpo"}).reference == 0
    assert training_memory(LLAMA2_7B, {**FULL, "optimizer": "adamw_bnb_8bit"}).optimizer == 2 * count


def test_four_bits() -> None:
    """4.13 bits per weight of the decoder's linear layers (QLoRA, section 3, with double quantisation)."""
    memory = training_memory(MISTRAL_7B, {**LORA, "adapter": "qlora", "load_in_4bit": True})
    linear = 32 * sum(linear.size for linear in MISTRAL_7B.linears)
    rest = MISTRAL_7B.parameters() - linear
    assert memory.weights == pytest.approx(linear * 4.127 / 8 + 2 * rest, rel=0.001)


def test_penalties() -> None:
    """A block of rows, one more for F; full fine-tuning keeps a copy of what it trains, unless told not to."""
    block = 64 << 20
    assert training_memory(LLAMA2_7B, {**LORA, "delta_l1": 1e-4}).penalty == block
    assert training_memory(LLAMA2_7B, {**LORA, "delta_l1": 1e-4}, "cpu").penalty == 1 << 20
    assert training_memory(LLAMA2_7B, {**LORA, "delta_ewc": 1.0, "delta_ewc_fisher": "f"}).penalty == 2 * block
    count = LLAMA2_7B.parameters()
    assert training_memory(LLAMA2_7B, {**FULL, "delta_l2": 1.0}).penalty == 2 * count + block
    assert training_memory(LLAMA2_7B, {**FULL, "delta_l2": 1.0, "delta_base": "reread"}).penalty == block


def test_batch() -> None:
    """A pair is two sequences; packed rows are as long as they may be, others as long as the longest is."""
    sft, dpo = (training_memory(LLAMA2_7B, {**LORA, **rl}, length=100) for rl in ({}, {"rl": "simpo"}))
    assert dpo.activations == 2 * sft.activations == 2 * 32 * 400 * 4096 * 2
    packed = training_memory(LLAMA2_7B, {**LORA, "sample_packing": True}, length=100)
    assert packed.activations == 32 * 4096 * 4096 * 2
    fused = {**LORA, "plugins": ["axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"]}
    assert training_memory(LLAMA2_7B, LORA).logits == 4096 * 32000 * 12
    assert training_memory(LLAMA2_7B, fused).logits == 0
    assert training_memory(LLAMA2_7B, {**fused, "rl": "dpo"}).logits > 0


@given(
    batch=st.integers(1, 8),
    length=st.integers(1, 4096),
    rank=st.integers(1, 64),
    checkpointing=st.booleans(),
    rl=st.sampled_from([None, "dpo", "orpo", "kto", "simpo"]),
)
def test_more_takes_more(batch: int, length: int, rank: int, checkpointing: bool, rl: str | None) -> None:
    keys = {**LORA, "micro_batch_size": batch, "sequence_len": length, "lora_r": rank, "rl": rl}
    keys["gradient_checkpointing"] = checkpointing
    memory = training_memory(MISTRAL_7B, keys)
    for change in ({"micro_batch_size": batch + 1}, {"sequence_len": length + 1}, {"lora_r": rank + 1}):
        assert training_memory(MISTRAL_7B, {**keys, **change}).total > memory.total
    assert memory.activations >= training_memory(MISTRAL_7B, {**keys, "gradient_checkpointing": True}).activations
