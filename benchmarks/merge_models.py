"""A base model and K LoRA adapters of a given shape with random weights, and the YAMLs that merge them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ADAPTERS, RANK, ALPHA, STD, SEED = 4, 16, 32, 0.02, 0
SMALLEST, LARGEST = 1e-3, 1e-2
"""RMS of a delta by that of its weights, in the first layer and in the last; between them it grows geometrically."""
MLP = ("gate_proj", "up_proj", "down_proj")
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"weight": 1 / ADAPTERS}, {}),
    "ties": ({"weight": 1.0, "density": 0.5}, {"normalize": True}),
    "dare_ties": ({"weight": 1 / ADAPTERS, "density": 0.5}, {"normalize": False, "rescale": True}),
}
"""Parameters of each model, and of the merge."""


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name, in a checkpoint's order."""
        kv = self.hidden // self.heads * self.kv_heads
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for layer in range(self.layers):
            inside = {
                "self_attn.q_proj": (self.hidden, self.hidden),
                "self_attn.k_proj": (kv, self.hidden),
                "self_attn.v_proj": (kv, self.hidden),
                "self_attn.o_proj": (self.hidden, self.hidden),
                "mlp.gate_proj": (self.intermediate, self.hidden),
                "mlp.up_proj": (self.intermediate, self.hidden),
                "mlp.down_proj": (self.hidden, self.intermediate),
                "input_layernorm": (self.hidden,),
                "post_attention_layernorm": (self.hidden,),
            }
            found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in inside.items()}
        return found | {"model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocab, self.hidden)}

    @property
    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }


SHAPES = {
    "1.1b": Shape(hidden=2048, layers=22, heads=32, kv_heads=4, intermediate=5632, vocab=32000),
    "tiny": Shape(hidden=128, layers=3, heads=4, kv_heads=2, intermediate=352, vocab=512),
}


def make(folder: Path, shape: Shape, tokenizer: Path) -> None:
    """The base, the adapters and the YAMLs in ``folder``; what is there already is kept."""
    base = folder / "base"
    if not (base / "config.json").exists():
        _make_base(base, shape, tokenizer)
    for number in range(ADAPTERS):
        if not (folder / f"a{number}" / "adapter_config.json").exists():
            _make_adapter(folder / f"a{number}", shape, base, number)
    for method in METHODS:
        _write_yaml(folder, method)


def relative_size(layer: int, layers: int) -> float:
    return SMALLEST * (LARGEST / SMALLEST) ** (layer / max(1, layers - 1))


def _make_base(base: Path, shape: Shape, tokenizer: Path) -> None:
    import torch
    from safetensors.torch import save_file

    base.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(SEED)
    tensors = {}
    for name, size in shape.tensors().items():
        drawn = torch.ones(size) if len(size) == 1 else torch.randn(size, generator=generator).mul_(STD)
        tensors[name] = drawn.bfloat16()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(tokenizer / name, base / name)
    (base / "config.json").write_text(json.dumps(shape.config, indent=2) + "\n")


def _make_adapter(folder: Path, shape: Shape, base: Path, number: int) -> None:
    """A as it is initialised; B such that the delta has the size that its layer shall have."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(SEED + 1 + number)
    tensors = {}
    for layer in range(shape.layers):
        for name in MLP:
            module = f"model.layers.{layer}.mlp.{name}"
            rows, columns = shape.tensors()[f"{module}.weight"]
            std_a = (3 * columns) ** -0.5
            std_b = relative_size(layer, shape.layers) * STD / (ALPHA / RANK * RANK**0.5 * std_a)
            for key, size, std in (("A", (RANK, columns), std_a), ("B", (rows, RANK), std_b)):
                drawn = torch.randn(size, generator=generator).mul_(std)
                tensors[f"base_model.model.{module}.lora_{key}.weight"] = drawn.bfloat16()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": list(MLP),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _write_yaml(folder: Path, method: str) -> None:
    import yaml

    own, shared = METHODS[method]
    base = folder / "base"
    models = [{"model": f"{base}+{folder / f'a{number}'}", "parameters": own} for number in range(ADAPTERS)]
    keys: dict[str, Any] = {"merge_method": method, "models": [dict(model) for model in models], "dtype": "bfloat16"}
    keys |= {} if method == "linear" else {"base_model": str(base)}
    keys |= {"parameters": shared} if shared else {}
    # Written as JSON, which is YAML: no anchors for what is repeated.
    (folder / f"{method}.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(keys)), sort_keys=False))
