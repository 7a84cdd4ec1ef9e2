"""Shapes and counts of weights, against transformers' own models of the same configuration."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untax.errors import UntaxError
from untax.recipes.cost.architecture import FAMILIES, Architecture, from_config
from untax.recipes.cost.known import KNOWN, LLAMA2_7B, MISTRAL_7B, find_architecture, read_architecture

TINY = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 50,
}


def weights(config: Any) -> int:
    """Of the model that transformers builds, without memory; a tied output layer is the embedding itself."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def config_of(kind: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **changes)


def stored(config: Any, tmp_path: Path) -> dict[str, Any]:
    config.save_pretrained(tmp_path)
    return json.loads((tmp_path / "config.json").read_text())


def test_bundled_base(base_model: Path) -> None:
    assert read_architecture(base_model / "config.json").parameters() == 260_032


@pytest.mark.parametrize(
    ("kind", "changes", "parameters"),
    [
        ("llama", dataclasses.asdict(LLAMA2_7B), 6_738_415_616),
        ("mistral", dataclasses.asdict(MISTRAL_7B), 7_241_732_096),
        ("llama", dataclasses.asdict(KNOWN["TinyLlama/TinyLlama_v1.1"]), 1_100_048_384),
        ("llama", dataclasses.asdict(KNOWN["meta-llama/Llama-3.1-8B"]), 8_030_261_248),
    ],
)
def test_real_models(kind: str, changes: dict[str, Any], parameters: int, tmp_path: Path) -> None:
    """The counts are those that the models' makers publish."""
    names = {
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "intermediate": "intermediate_size",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "vocabulary": "vocab_size",
    }
    config = config_of(kind, **{key: changes[name] for name, key in names.items()}, tie_word_embeddings=False)
    architecture = from_config(stored(config, tmp_path))
    assert architecture == Architecture(**changes)
    assert architecture.parameters() == weights(config) == parameters


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_families(kind: str, tied: bool, tmp_path: Path) -> None:
    config = config_of(kind, **TINY, head_dim=6, tie_word_embeddings=tied, pad_token_id=0)
    assert from_config(stored(config, tmp_path)).parameters() == weights(config)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "olmo2", "smollm3"])
def test_biases(kind: str, tmp_path: Path) -> None:
    more = {"mlp_bias": True} if kind == "llama" else {}
    config = config_of(kind, **TINY, head_dim=6, attention_bias=True, pad_token_id=0, **more)
    assert from_config(stored(config, tmp_path)).parameters() == weights(config)


def test_what_a_config_leaves_out() -> None:
    """Old Llamas name no key-value heads, Gemma no tied embedding, and Qwen3 no width of a head."""
    least = {key: value for key, value in TINY.items() if key != "num_key_value_heads"}
    llama = from_config({**least, "model_type": "llama"})
    assert (llama.kv_heads, llama.head_dim, llama.tied) == (4, 6, False)
    assert from_config({**TINY, "model_type": "gemma"}).tied
    assert from_config({**TINY, "model_type": "qwen3"}).head_dim == 128


def test_text_model_of_a_larger_one() -> None:
    text = {**TINY, "model_type": "gemma3_text"}
    assert from_config({"model_type": "gemma3", "text_config": text}) == from_config(text)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({**TINY, "model_type": "mixtral", "num_local_experts": 8}, "8 experts"),
        ({**TINY, "model_type": "llama", "num_experts": 4}, "4 experts"),
        ({**TINY, "model_type": "gpt2"}, "type gpt2"),
        ({}, r"type \(none\)"),
        ({**TINY, "model_type": "llama", "hidden_size": "24"}, "hidden_size is '24'"),
        ({key: value for key, value in {**TINY, "model_type": "llama"}.items() if key != "vocab_size"}, "vocab_size"),
        ({**TINY, "model_type": "llama", "vocab_size": True}, "vocab_size is True"),
    ],
)
def test_refused(config: dict[str, Any], problem: str) -> None:
    with pytest.raises(UntaxError, match=problem):
        from_config(config, where="somewhere")


def test_known_without_a_file(tmp_path: Path, base_model: Path) -> None:
    assert find_architecture("meta-llama/Llama-2-7b-hf", tmp_path) == LLAMA2_7B
    assert find_architecture("nobody/nothing-of-that-name", tmp_path) is None
    found = find_architecture(str(base_model), tmp_path)
    assert found is not None
    assert found.parameters() == 260_032


def test_broken_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(UntaxError, match="no configuration"):
        find_architecture(".", tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UntaxError, match="no configuration"):
        find_architecture(".", tmp_path)


@given(st.integers(1, 3), st.integers(1, 8), st.integers(1, 8), st.booleans())
def test_multiplied_is_all_but_norms_and_the_lookup(layers: int, heads: int, width: int, tied: bool) -> None:
    shape = Architecture(layers, heads * width, 2 * heads * width, heads, heads, width, 11, tied)
    norms = (2 * layers + 1) * shape.hidden
    assert shape.multiplied() == shape.parameters() - norms - (0 if tied else shape.embedding)
