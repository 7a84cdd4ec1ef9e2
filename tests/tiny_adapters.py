"""Tiny bases and adapters on disk: made by PEFT, or written number by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_model(folder: Path, tensors: dict[str, Any], **config: Any) -> Path:
    """A model folder of these tensors; lists become fp32."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    as_tensors = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in tensors.items()}
    save_file(as_tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_adapter(folder: Path, factors: dict[str, tuple[Any, Any]], others: Any = None, **config: Any) -> Path:
    """An adapter folder of these modules: name -> (B, A), as lists of rows; alpha / r is 2."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = dict(others or {})
    for module, (b, a) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.as_tensor(a)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.as_tensor(b)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


TWO_LAYERS = {
    "model.layers.0.self_attn.q_proj": ([[1.0], [0.0]], [[3.0, -4.0]]),  # delta 6, -8, 0, 0
    "model.layers.11.mlp.down_proj": (
        [[0.5]],
        [[1.0, -2.0, 8.0, 10.0, 0.0, 9.0, 9.0, 9.0]],
    ),  # 1, -2, 8, 10, 0, 9, 9, 9
}
THEIR_BASE = {
    "model.layers.0.self_attn.q_proj.weight": [[3.0, -3.0], [3.0, 3.0]],
    "model.layers.11.mlp.down_proj.weight": [[0.0, 0.0, 4.0, 0.0, 0.0, -4.0, 4.0, 4.0]],  # RMS sqrt(8)
    "model.norm.weight": [1.0],
}


def peft_llama(folder: Path, *, tied: bool = False, dtype: str = "float32", **changes: Any) -> tuple[Path, Path]:
    """(base, adapter) of a two-layer Llama; some rows of each B are zero."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=64, num_key_value_heads=2, tie_word_embeddings=tied, **sizes)
    return _with_adapter(folder, LlamaForCausalLM, config, dtype, changes)


def peft_gpt2(folder: Path) -> tuple[Path, Path]:
    """(base, adapter) of a GPT-2, whose weights lie the other way round and have no prefix in the checkpoint."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=4)
    changes = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    return _with_adapter(folder, GPT2LMHeadModel, config, "float32", changes)


def _with_adapter(folder: Path, kind: Any, config: Any, dtype: str, changes: dict[str, Any]) -> tuple[Path, Path]:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = kind(config)
    getattr(model, "transformer", model).save_pretrained(folder / "base")
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **changes}
    adapted = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = (0.05 * torch.randn_like(parameter)).to(getattr(torch, dtype))
            if "lora_B" in name or "embedding_B" in name:
                parameter.data[::3] = 0
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
    adapted.save_pretrained(folder / "adapter")
    return folder / "base", folder / "adapter"


def deltas_by_peft(base: Path, adapter: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(deltas, base's tensors) in float64 by module: PEFT's merge_and_unload minus the base, where they differ."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = PeftModel.from_pretrained(model, adapter).double().merge_and_unload().state_dict()
    changed = [name for name in before if not torch.equal(merged[name], before[name])]
    deltas = {name.removesuffix(".weight"): merged[name] - before[name] for name in changed}
    return deltas, {name.removesuffix(".weight"): before[name] for name in changed}
