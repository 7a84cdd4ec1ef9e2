"""Random models of a few layers, with and without LoRA, and what torch itself counts of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MLP = ALL[4:]

SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 256,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}


def model(
    layers: int,
    *,
    kind: str = "llama",
    keys: dict[str, Any],
    half: bool = False,
    attention: str = "sdpa",
) -> Any:
    """A model in training, adapted as the Axolotl keys say."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **{**SHAPE, "num_hidden_layers": layers})
    config._attn_implementation = attention
    made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if half else torch.float32)
    if keys.get("adapter"):
        lora = {"r": keys["lora_r"], "target_modules": keys["lora_target_modules"]}
        made = get_peft_model(made, LoraConfig(**lora, lora_dropout=keys.get("lora_dropout", 0.0)))
    if keys.get("gradient_checkpointing"):
        if keys.get("adapter"):
            made.enable_input_require_grads()
        made.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return made.train()


@contextlib.contextmanager
def saved_bytes(made: Any) -> Iterator[list[int]]:
    """Bytes of what the forward pass inside keeps for backward, each storage once, without the weights."""
    import torch

    weights = {parameter.untyped_storage().data_ptr() for parameter in made.parameters()}
    seen: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage
        return tensor

    total = [0]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total[0] = sum(storage.nbytes() for storage in seen.values())
