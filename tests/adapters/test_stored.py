"""Adapters read from disk against PEFT's own merge_and_unload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from untax.adapters.header import has_nonfinite, read_header
from untax.adapters.stored import StoredAdapter
from untax.errors import UntaxError


def base_model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes))


def save_adapter(folder: Path, dtype: str = "float32", **changes: Any) -> Any:
    """Save a random adapter; the merged model is returned."""
    import torch
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **changes}
    model = get_peft_model(base_model(), LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter).to(getattr(torch, dtype)).to(parameter.dtype)
    model.save_pretrained(folder)
    return model.merge_and_unload()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    save_adapter(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, 14),
        ({"use_rslora": True}, 14),
        ({"rank_pattern": {"q_proj": 2, r".*\.1\.mlp\.up_proj": 6}, "alpha_pattern": {"layers.0.mlp.up_proj": 3}}, 14),
        ({"use_rslora": True, "rank_pattern": {"q_proj": 9}, "alpha_pattern": {"^model.layers.0.*q_proj": 5}}, 14),
        ({"target_modules": ["embed_tokens", "v_proj"]}, 3),
        ({"target_modules": ["embed_tokens", "lm_head"], "lora_alpha": 3}, 2),
    ],
    ids=["plain", "rslora", "patterns", "rslora-patterns", "embedding", "lm_head"],
)
def test_deltas_are_those_of_peft(changes: dict[str, Any], layers: int, tmp_path: Path) -> None:
    import torch

    merged = save_adapter(tmp_path, **changes).state_dict()
    base = base_model().state_dict()
    deltas = dict(StoredAdapter(tmp_path).deltas())
    assert len(deltas) == layers
    for name, tensor in base.items():
        wanted = merged[name] - tensor
        assert (name in deltas) == bool(wanted.any())
        if name in deltas:
            assert deltas[name].dtype == torch.float32
            torch.testing.assert_close(deltas[name], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=["dora", "whole"])
def test_what_is_no_delta_is_named_and_not_skipped(changes: dict[str, Any], tmp_path: Path) -> None:
    save_adapter(tmp_path, **changes)
    adapter = StoredAdapter(tmp_path)
    assert adapter.other_keys
    with pytest.raises(UntaxError, match=adapter.other_keys[0]):
        next(adapter.deltas())


def test_missing_parts(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    content = weights.read_bytes()
    for cut in (0, 4, 100, len(content) - 1):
        weights.write_bytes(content[:cut])
        with pytest.raises(UntaxError, match="cut off"):
            StoredAdapter(adapter)
    weights.write_bytes(content + b"more")
    with pytest.raises(UntaxError, match="cut off or is no safetensors"):
        StoredAdapter(adapter)
    weights.rename(adapter / "adapter_model.bin")
    with pytest.raises(UntaxError, match="pickle"):
        StoredAdapter(adapter)
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(UntaxError, match="its training did not end"):
        StoredAdapter(adapter)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(UntaxError, match=r"no adapter_config\.json"):
        StoredAdapter(adapter)
    with pytest.raises(UntaxError, match="no such adapter folder"):
        StoredAdapter(adapter / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 8}, "is 4, but 8 according to"),
        ({"peft_type": "IA3"}, "no LoRA adapter"),
        ({"r": None}, "no LoRA adapter"),
        ({"r": "four"}, "under r or rank_pattern is no number"),
        ({"rank_pattern": [4]}, "under r or rank_pattern"),
        ({"lora_alpha": float("nan")}, "under lora_alpha or alpha_pattern"),
        ({"alpha_pattern": {"(": 4}}, "under lora_alpha or alpha_pattern"),
        ({"alpha_pattern": {"q_proj": None}}, "under lora_alpha or alpha_pattern"),
    ],
)
def test_configuration_that_does_not_fit(changes: dict[str, Any], message: str, adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    kept = {key: value for key, value in {**json.loads(path.read_text()), **changes}.items() if value is not None}
    path.write_text(json.dumps(kept))
    with pytest.raises(UntaxError, match=message):
        _ = StoredAdapter(adapter).layers


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite_values_are_found_without_torch(dtype: str, value: float, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    largest = torch.finfo(getattr(torch, dtype)).max
    whole = torch.tensor([0.0, -1.5, largest, -largest, 1e-7], dtype=getattr(torch, dtype))
    broken = whole.clone()
    broken[3] = value
    save_file({"whole": whole, "broken": broken, "empty": whole[:0], "counts": torch.arange(3)}, tmp_path / "file")
    header = read_header(tmp_path / "file")
    assert {name: has_nonfinite(info) for name, info in header.items()} == {
        "whole": False,
        "broken": True,
        "empty": False,
        "counts": False,
    }


@pytest.mark.parametrize(("down", "up"), [((4,), (8, 4)), ((4, 8), (8,)), ((), (8, 4)), ((0, 8), (8, 0))])
def test_factors_that_are_no_matrices(down: tuple[int, ...], up: tuple[int, ...], adapter: Path) -> None:
    import torch
    from safetensors.torch import save_file

    factors = {f"base_model.model.q.lora_{kind}.weight": torch.ones(shape) for kind, shape in (("A", down), ("B", up))}
    save_file(factors, adapter / "adapter_model.safetensors")
    with pytest.raises(UntaxError, match="The factors of q are no matrices"):
        _ = StoredAdapter(adapter).layers


HEADERS = {
    "a negative offset": {"x": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
    "a hole": {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [at, at + 4]} for name, at in (("x", 0), ("y", 12))
    },
    "negative sizes": {"x": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}},
    "half a byte": {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4.0]}},
}


@pytest.mark.parametrize("what", HEADERS)
def test_header_that_lies(what: str, tmp_path: Path) -> None:
    header = json.dumps(HEADERS[what]).encode()
    size = max(stop for entry in HEADERS[what].values() for stop in entry["data_offsets"])
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(int(size)))
    with pytest.raises(UntaxError, match="is no safetensors file"):
        read_header(tmp_path / "x.safetensors")
