"""Which weights are taken, and under which names: against PEFT's all-linear and real checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from untax.adapters.header import read_header
from untax.errors import UntaxError
from untax.fisher.model import checkpoint_shapes
from untax.fisher.weights import weights_of

from .networks import gpt2, llama, shapes


def names(network: Any, modules: str, stored: dict[str, tuple[int, ...]] | None = None) -> list[str]:
    return [weight.name for weight in weights_of(network, modules, stored or shapes(network), where="model")]


@pytest.mark.parametrize(("make", "options"), [(llama, {}), (llama, {"tied": True}), (gpt2, {})])
def test_linear_is_what_peft_adapts_as_all_linear(make: Any, options: dict[str, Any]) -> None:
    import peft

    network = make(**options)
    found = names(network, "linear")
    adapted = peft.get_peft_model(network, peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    layers = {
        name.removeprefix("base_model.model.") for name, module in adapted.named_modules() if hasattr(module, "lora_A")
    }
    assert found == sorted(f"{name}.weight" for name in layers)


def test_all_is_every_tensor_of_the_checkpoint(base_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(base_model)
    assert names(network, "all", checkpoint_shapes(base_model)) == sorted(read_header(base_model / "model.safetensors"))


def test_tied_weights_have_the_name_that_the_checkpoint_has(tmp_path: Path) -> None:
    network = llama(tied=True)
    stored = shapes(network)
    stored["lm_head.weight"] = stored.pop("model.embed_tokens.weight")
    found = names(network, "all", stored)
    assert "lm_head.weight" in found
    assert len(found) == len(stored)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_checkpoint_without_the_head_has_shorter_names(make: Any, tmp_path: Path) -> None:
    network = make()
    network.base_model.save_pretrained(tmp_path)
    stored = checkpoint_shapes(tmp_path)
    assert set(names(network, "linear", stored)) < set(stored)
    assert not any(name.startswith(f"{network.base_model_prefix}.") for name in stored)


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    network = llama()
    network.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert checkpoint_shapes(tmp_path) == shapes(network)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UntaxError, match="index cannot be read"):
        checkpoint_shapes(tmp_path)


def test_a_weight_that_the_checkpoint_stores_otherwise_is_refused() -> None:
    network = llama()
    stored = shapes(network)
    stored["model.layers.0.mlp.up_proj.weight"] = (24, 17)
    with pytest.raises(UntaxError, match=r"no tensor model.layers.0.mlp.up_proj.weight of shape \[24, 16\]"):
        names(network, "linear", stored)


def test_fused_experts_are_not_linear_layers(tmp_path: Path) -> None:
    """transformers fuses a Mixtral's experts as it loads them: they have no tensor in the checkpoint."""
    from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = MixtralConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, num_local_experts=2)
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    network = AutoModelForCausalLM.from_pretrained(tmp_path)
    stored = checkpoint_shapes(tmp_path)
    assert names(network, "linear", stored) == [f"model.layers.0.self_attn.{part}_proj.weight" for part in "koqv"]
    with pytest.raises(UntaxError, match="Use --modules linear"):
        names(network, "all", stored)
