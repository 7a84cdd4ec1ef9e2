"""Adapters read as changes of their base, against PEFT's own merge_and_unload."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untax.adapters.base import StoredModel
from untax.adapters.changes import Change, LowRankChange, read_changes
from untax.adapters.stored import StoredAdapter
from untax.errors import UntaxError

Q = "base_model.model.model.layers.0.self_attn.q_proj"


def llama(**changes: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{"vocab_size": 64, "num_key_value_heads": 2, **sizes, **changes}))


def gpt2(**changes: Any) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=16, **changes))


def save(folder: Path, model: Any = None, **settings: Any) -> None:
    """``base`` and ``adapter`` in a folder; whatever is trained is random, in both."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = llama() if model is None else model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder / "base")
    defaults = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(model, LoraConfig(**{**defaults, **settings}))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(folder / "adapter")


def read(folder: Path) -> dict[str, Change]:
    return read_changes(StoredAdapter(folder / "adapter"), StoredModel(folder / "base"))


def merged_by_peft(folder: Path) -> dict[str, Any]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    return PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload().state_dict()


def base_tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "base" / "model.safetensors")


def all_rows(change: Change, base: Any) -> Any:
    matrix = base.reshape(base.shape[0], -1)
    return change.open()(slice(0, len(base)), matrix if change.needs_base else None).reshape(base.shape)


def rewrite(folder: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "adapter" / "adapter_model.safetensors"
    save_file({key: tensor.contiguous().clone() for key, tensor in edit(load_file(path)).items()}, path)


def configure(folder: Path, part: str = "adapter/adapter_config.json", **changes: Any) -> None:
    path = folder / part
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (llama, {}),
    "rslora": (llama, {"use_rslora": True}),
    "patterns": (
        llama,
        {"rank_pattern": {"q_proj": 2, r".*\.1\.mlp\.up_proj": 7}, "alpha_pattern": {"layers.0.mlp.up_proj": 3}},
    ),
    "conv1d": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "conv1d and linear": (
        lambda: gpt2(tie_word_embeddings=False),
        {"target_modules": ["c_attn", "lm_head", "wte"], "fan_in_fan_out": True},
    ),
    "embedding": (llama, {"target_modules": ["embed_tokens", "v_proj"]}),
    "lm_head": (llama, {"target_modules": ["lm_head", "v_proj"]}),
    "modules_to_save": (llama, {"modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
    "all biases": (lambda: llama(attention_bias=True, mlp_bias=True), {"target_modules": ["q_proj"], "bias": "all"}),
    "biases of a saved module": (
        lambda: llama(attention_bias=True),
        {"target_modules": ["q_proj"], "modules_to_save": ["o_proj"], "bias": "all"},
    ),
    "lora_bias": (lambda: llama(attention_bias=True), {"target_modules": ["q_proj", "o_proj"], "lora_bias": True}),
    "dora": (llama, {"use_dora": True, "use_rslora": True}),
}


@pytest.fixture(scope="module", params=KINDS)
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    model, settings = KINDS[request.param]
    save(folder, model(), **settings)
    return folder


def test_merged_tensors_have_the_bits_of_peft(stored: Path) -> None:
    import torch

    wanted, base, changes = merged_by_peft(stored), base_tensors(stored), read(stored)
    assert {name for name in base if not torch.equal(wanted[name], base[name])} == set(changes)
    for name, change in changes.items():
        before = base[name].clone()
        assert torch.equal(change.merged(base[name]), wanted[name]), name
        assert torch.equal(base[name], before)
        assert (change.tensor, change.shape) == (name, tuple(base[name].shape))


def test_rows_agree_with_float64(stored: Path) -> None:
    import torch

    base = base_tensors(stored)
    for name, change in read(stored).items():
        found, wanted = all_rows(change, base[name]), exact_delta(stored, name, base[name].double())
        assert found.dtype == torch.float32
        assert float((found - wanted).norm() / wanted.norm()) < 1e-6 * float(1 + base[name].norm() / wanted.norm())


def exact_delta(folder: Path, name: str, base: Any) -> Any:
    """From the file and the formulas alone, in float64."""
    adapter = StoredAdapter(folder / "adapter")
    tensors = {key: tensor.double() for key, tensor in loaded(folder).items()}
    stem = f"base_model.model.{name.rpartition('.')[0]}"
    layer = next((layer for layer in adapter.layers if layer.module == name.rpartition(".")[0]), None)
    if name.endswith(".bias") and f"{stem}.lora_B.bias" in tensors:
        return layer.scale * tensors[f"{stem}.lora_B.bias"]
    if layer is None or name.endswith(".bias"):
        whole = tensors.get(f"{stem}.base_layer.bias", tensors.get(f"base_model.model.{name}"))
        return whole - base
    product = layer.scale * tensors[layer.up] @ tensors[layer.down]
    product = product.T if product.shape != base.shape or "c_proj" in name or "wte" in name else product
    if f"{stem}.lora_magnitude_vector" in tensors:
        length = (base + product).norm(dim=1)
        return (tensors[f"{stem}.lora_magnitude_vector"] / length)[:, None] * (base + product) - base
    return product


def loaded(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter" / "adapter_model.safetensors")


@given(cuts=st.lists(st.integers(0, 64), max_size=6))
def test_any_cover_by_slices_gives_the_same_rows(stored: Path, cuts: list[int]) -> None:
    import torch

    base = base_tensors(stored)
    for name, change in list(read(stored).items())[:4]:
        rows, matrix = len(base[name]), base[name].reshape(len(base[name]), -1)
        read_rows, whole = change.open(), all_rows(change, base[name]).reshape(len(base[name]), -1)
        edges = [0, *sorted(min(cut, rows) for cut in cuts), rows]
        parts = []
        for start, stop in itertools.pairwise(edges):
            parts.append(read_rows(slice(start, stop), matrix[start:stop] if change.needs_base else None))
            again = read_rows(slice(start, stop), matrix[start:stop] if change.needs_base else None)
            parts[-1] += 1
            parts[-1].copy_(again)  # what the caller does with one block is not seen in the next
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)


def test_factors_have_the_orientation_of_the_base(tmp_path: Path) -> None:
    import torch

    save(tmp_path, gpt2(), target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    base = base_tensors(tmp_path)
    for name, change in read(tmp_path).items():
        assert isinstance(change, LowRankChange)
        up, down = change.factors()
        assert (len(up), down.shape[1]) == base[name].shape
        torch.testing.assert_close(change.scale * up @ down, change.merged(base[name]) - base[name], rtol=0, atol=1e-6)


def test_checkpoint_without_the_prefix_of_the_model(tmp_path: Path) -> None:
    """The GPT-2 of the hub has ``h.0.`` for ``transformer.h.0.``; tensors keep the checkpoint's names."""
    from safetensors.torch import save_file

    save(tmp_path, gpt2(), target_modules=["c_attn"], fan_in_fan_out=True)
    named = read(tmp_path)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in base_tensors(tmp_path).items()}
    save_file(bare, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    assert (
        set(read(tmp_path))
        == {name.removeprefix("transformer.") for name in named}
        == {f"h.{layer}.attn.c_attn.weight" for layer in range(2)}
    )


def test_bf16_factors_are_multiplied_in_fp32(tmp_path: Path) -> None:
    import torch

    save(tmp_path)
    rewrite(tmp_path, lambda tensors: {key: tensor.bfloat16() for key, tensor in tensors.items()})
    tensors, base = loaded(tmp_path), base_tensors(tmp_path)["model.layers.0.self_attn.q_proj.weight"]
    exact = base.double() + 1.5 * tensors[f"{Q}.lora_B.weight"].double() @ tensors[f"{Q}.lora_A.weight"].double()
    found = read(tmp_path)["model.layers.0.self_attn.q_proj.weight"].merged(base)
    assert found.dtype == torch.float32
    assert float((found - exact).norm() / (exact - base).norm()) < 1e-5  # bf16's rounding is 4e-3


@pytest.mark.parametrize("wrapping", ["_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module."])
def test_names_that_training_wrapped(wrapping: str, tmp_path: Path) -> None:
    save(tmp_path, modules_to_save=["lm_head"])
    plain = {name: change.shape for name, change in read(tmp_path).items()}

    def wrapped(key: str) -> str:
        return key.replace("layers.0.", f"layers.0.{wrapping}").replace("base_model.", f"{wrapping}base_model.", 1)

    rewrite(tmp_path, lambda tensors: {wrapped(key): tensor for key, tensor in tensors.items()})
    assert {name: change.shape for name, change in read(tmp_path).items()} == plain
    rewrite(tmp_path, lambda tensors: {**tensors, f"{Q}.lora_A.weight": tensors[wrapped(f"{Q}.lora_A.weight")]})
    with pytest.raises(UntaxError, match="mean the same"):
        read(tmp_path)


def refusal(folder: Path) -> str:
    with pytest.raises(UntaxError) as error:
        read(folder)
    return str(error.value)


@given(position=st.integers(0, 10**6), letter=st.sampled_from("xAB._"))
def test_no_misspelled_key_passes(position: int, letter: str, plain: Path, tmp_path_factory: Any) -> None:
    """One letter too many anywhere in a key: it is named, or the layer that now lacks it."""
    folder = tmp_path_factory.mktemp("misspelled")
    for name in ("base", "adapter"):
        (folder / name).mkdir()
        for file in (plain / name).iterdir():
            (folder / name / file.name).write_bytes(file.read_bytes())
    keys = sorted(loaded(folder))
    key = keys[position % len(keys)]
    place = position % (len(key) + 1)
    misspelled = key[:place] + letter + key[place:]
    rewrite(folder, lambda tensors: {misspelled if old == key else old: value for old, value in tensors.items()})
    assert key.removeprefix("base_model.model.").split(".lora_")[0].removesuffix(".weight") in refusal(folder) or (
        misspelled in refusal(folder)
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    save(folder, target_modules=["q_proj"], modules_to_save=["norm"])
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"target_modules": ["embed_tokens"], "use_dora": True}, "embed_tokens.lora_magnitude_vector is DoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is pissa"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
    ],
)
def test_kinds_that_are_not_merged(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    save(tmp_path, **settings)
    assert message in refusal(tmp_path)


@pytest.mark.parametrize("key", ["target_parameters", "alora_invocation_tokens", "use_qalora", "arrow_config"])
def test_kinds_told_by_the_configuration(key: str, tmp_path: Path) -> None:
    save(tmp_path)
    configure(tmp_path, **{key: [1]})
    assert f"{key} is set" in refusal(tmp_path)


def test_convolutions(tmp_path: Path) -> None:
    import torch

    save(tmp_path, target_modules=["q_proj"])
    rewrite(tmp_path, lambda tensors: {key: torch.randn(*tensor.shape, 1, 1) for key, tensor in tensors.items()})
    assert "q_proj.lora_A.weight is a factor of a convolution" in refusal(tmp_path)


def test_unknown_keys_and_keys_against_the_configuration(tmp_path: Path) -> None:
    import torch

    save(tmp_path, use_dora=True, modules_to_save=["norm"])
    kept = loaded(tmp_path)
    for edit, message in [
        (lambda tensors: {**tensors, f"{Q}.lora_C.weight": torch.ones(2)}, "q_proj.lora_C.weight belongs to no tensor"),
        (lambda tensors: {**tensors, f"{Q}.weight": torch.ones(32, 32)}, "which another key changes too"),
        (
            lambda tensors: {key: value for key, value in tensors.items() if key != f"{Q}.lora_magnitude_vector"},
            "has no lora_magnitude_vector beside it",
        ),
        (lambda tensors: {key: value for key, value in tensors.items() if "norm" not in key}, "no tensor of norm"),
        (
            lambda tensors: {key: value for key, value in tensors.items() if "layers.0.mlp.up_proj" not in key},
            "misses the factors of model.layers.0.mlp.up_proj",
        ),
    ]:
        rewrite(tmp_path, edit)
        assert message in refusal(tmp_path)
        rewrite(tmp_path, lambda _: kept)
    configure(tmp_path, use_dora=False)
    assert "lora_magnitude_vector belongs to no tensor" in refusal(tmp_path)


def test_biases_that_peft_lost(tmp_path: Path) -> None:
    """As PEFT 0.20 does; 0.21 saves them."""
    save(tmp_path, llama(attention_bias=True), target_modules=["q_proj"], bias="lora_only")
    rewrite(tmp_path, lambda tensors: {key: value for key, value in tensors.items() if ".lora_" in key})
    assert "does not save it with bias: lora_only" in refusal(tmp_path)
    configure(tmp_path, bias="none")
    assert len(read(tmp_path)) == 2


def test_added_tokens_are_called_by_name(tmp_path: Path) -> None:
    import torch

    save(tmp_path, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    rewrite(
        tmp_path,
        lambda tensors: {key: value if len(value) != 64 else torch.ones(70, 32) for key, value in tensors.items()},
    )
    message = refusal(tmp_path)
    assert "64 x 32 there and 70 x 32 here, with tokens added" in message
    assert "resize_token_embeddings" in message


def test_shapes_and_missing_tensors(tmp_path: Path) -> None:
    save(tmp_path / "one", target_modules=["up_proj"])
    save(tmp_path / "other", llama(intermediate_size=64), target_modules=["up_proj"])
    (tmp_path / "one/base").rename(tmp_path / "kept")
    (tmp_path / "other/base").rename(tmp_path / "one/base")
    message = refusal(tmp_path / "one")
    assert "up_proj.weight is 64 x 32 there and 48 x 32 here" in message
    assert "up_proj.lora_A.weight" in message
    save(tmp_path / "shallow", llama(num_hidden_layers=1), target_modules=["q_proj"])
    save(tmp_path / "deep", target_modules=["q_proj"])
    (tmp_path / "deep/base").rename(tmp_path / "kept2")
    (tmp_path / "shallow/base").rename(tmp_path / "deep/base")
    assert "layers.1.self_attn.q_proj.weight, which the base" in refusal(tmp_path / "deep")


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_tied_embeddings(target: str, tmp_path: Path) -> None:
    save(tmp_path, llama(tie_word_embeddings=True), target_modules=["q_proj"], modules_to_save=[target])
    message = refusal(tmp_path)
    assert target in message
    assert "untied" in message


def test_quantised_base(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save(tmp_path, target_modules=["q_proj"])
    tensors = base_tensors(tmp_path)
    tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(512, 1, dtype=torch.uint8)
    save_file(tensors, tmp_path / "base/model.safetensors")
    assert "quantised tensor: model.layers.0.self_attn.q_proj.weight is stored as U8" in refusal(tmp_path)


def test_copy_of_the_base_with_other_values(tmp_path: Path) -> None:
    save(tmp_path, target_modules=["embed_tokens"])
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    assert name in loaded(tmp_path)
    assert list(read(tmp_path)) == ["model.embed_tokens.weight"]
    rewrite(tmp_path, lambda tensors: {**tensors, name: tensors[name] + 1})
    assert f"{name} is a copy of model.embed_tokens.weight with other values" in refusal(tmp_path)


def test_square_layer_of_unknown_orientation(tmp_path: Path) -> None:
    """PEFT keeps fan_in_fan_out of the last layer only; a square layer's shape does not tell."""
    model = gpt2(tie_word_embeddings=False)
    save(tmp_path, model, target_modules=["attn.c_proj", "c_attn", "lm_head"], fan_in_fan_out=True)
    configure(tmp_path, fan_in_fan_out=False)
    assert "may be transposed or not" in refusal(tmp_path)
