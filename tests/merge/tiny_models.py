"""Two-layer Llamas and adapters made by PEFT, merged by the real mergekit in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from untax.merge.merge import Wish, merge

Config = Callable[..., Path]
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def make_base(folder: Path, tokenizer_from: Path, *, seed: int = 0, **changes: Any) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        **changes,
    }
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copy(tokenizer_from / name, folder / name)
    return folder


def make_adapter(base: Path, folder: Path, *, seed: int, **changes: Any) -> Path:
    """An adapter all of whose factors are random and nonzero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **changes}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or "lora_" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def linear(folder: Path) -> dict[str, Any]:
    inputs = [{"model": f"{folder / 'base'}+{folder / name}", "parameters": {"weight": 0.5}} for name in ("a0", "a1")]
    return {"merge_method": "linear", "models": inputs, "dtype": "float32"}


def untax_merge(config: Path, out: Path, *arguments: str, **wish: Any) -> list[str]:
    """Merge quietly; what was said."""
    said: list[str] = []
    merge(config, out, ["--quiet", *arguments], Wish(**wish), say=said.append)
    return said


def weights(folder: Path) -> Mapping[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def relative_error(found: Mapping[str, Any], wanted: Mapping[str, Any], base: Mapping[str, Any]) -> float:
    """||found - wanted|| / ||wanted - base||, over all tensors."""
    error = sum(float(((found[name].double() - wanted[name].double()) ** 2).sum()) for name in base)
    size = sum(float(((wanted[name].double() - base[name].double()) ** 2).sum()) for name in base)
    return (error / size) ** 0.5
