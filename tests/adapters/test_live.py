"""Which deltas a model in training has, and which adapters are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from untax.adapters.delta import LowRankDelta, ParameterDelta
from untax.adapters.live import base_name, trained_tensors
from untax.adapters.norms import delta_norms
from untax.errors import UntaxError


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(11, 6)
        self.first = torch.nn.Linear(6, 8)
        self.second = torch.nn.Linear(8, 6)
        self.image = torch.nn.Conv2d(3, 4, 3)
        self.head = torch.nn.Linear(6, 11)


def peft_model(**changes: Any) -> Any:
    settings = {"r": 2, "lora_alpha": 6, "target_modules": ["first", "second"], "init_lora_weights": False, **changes}
    return get_peft_model(Small(), LoraConfig(**settings))


def references(name: str, parameter: torch.Tensor) -> Any:
    copy = parameter.detach().clone()
    return lambda rows: copy[rows]


def found_in(model: Any) -> dict[str, Any]:
    return {trained.name: trained.delta(references) for trained in trained_tensors(model)}


def merged_change(model: Any, name: str) -> torch.Tensor:
    """What PEFT itself adds to a weight."""
    return model.base_model.model.get_submodule(name).get_delta_weight("default").double()


@pytest.mark.parametrize(
    "changes", [{}, {"use_rslora": True}, {"rank_pattern": {"first": 1}, "alpha_pattern": {"second": 5}}]
)
def test_deltas_are_what_peft_would_merge(changes: dict[str, Any]) -> None:
    model = peft_model(**changes)
    found = found_in(model)
    assert set(found) == {"first.weight", "second.weight"}
    for name, delta in found.items():
        expected = merged_change(model, name.removesuffix(".weight"))
        assert torch.allclose(delta.delta().double(), expected, rtol=1e-5, atol=1e-7)
        assert (delta.shape, delta.transposed) == (tuple(expected.shape), False)


def test_embedding_factors_lie_the_other_way_round() -> None:
    model = peft_model(target_modules=["words", "first"])
    words = found_in(model)["words.weight"]
    assert torch.allclose(words.delta().double().T, merged_change(model, "words"), rtol=1e-5, atol=1e-7)
    assert words.transposed


@pytest.mark.parametrize(
    ("changes", "others"),
    [
        ({"modules_to_save": ["head"]}, {"head.weight", "head.bias"}),
        ({"bias": "lora_only"}, {"first.bias", "second.bias"}),
        ({"bias": "all"}, {"first.bias", "second.bias", "image.bias", "head.bias"}),
    ],
)
def test_what_is_trained_beside_the_factors_is_covered_too(changes: dict[str, Any], others: set[str]) -> None:
    model = peft_model(**changes)
    found = found_in(model)
    assert set(found) == {"first.weight", "second.weight"} | others
    assert all(isinstance(found[name], ParameterDelta) for name in others)
    for name in others:
        with torch.no_grad():
            found[name].parameter.add_(0.25)
        moved = torch.cat([block for _, block in found[name].blocks()])
        assert torch.allclose(moved, torch.full_like(moved, 0.25))


def test_full_fine_tuning_is_covered_whole() -> None:
    model = Small()
    found = found_in(model)
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert found["image.weight"].shape == (4, 27)
    assert found["head.bias"].shape == (11, 1)


@pytest.mark.parametrize(
    ("live", "name"),
    [
        ("model.norm.weight", "model.norm.weight"),
        ("base_model.model.model.layers.0.mlp.up_proj.base_layer.weight", "model.layers.0.mlp.up_proj.weight"),
        ("_orig_mod.base_model.model.lm_head.modules_to_save.default.weight", "lm_head.weight"),
        ("module.model.layers.1._checkpoint_wrapped_module.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_names_are_those_of_the_checkpoint(live: str, name: str) -> None:
    assert base_name(live) == name


def test_a_frozen_reference_adapter_is_left_out() -> None:
    """TRL keeps a copy named "ref" beside the adapter that DPO trains."""
    model = peft_model()
    model.add_adapter("ref", model.peft_config["default"])
    model.set_adapter("default")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".default" in name)
    factors = list(found_in(model).values())
    trained = {id(p) for n, p in model.named_parameters() if ".default" in n}
    assert len(factors) == 2
    assert {id(f.a) for f in factors} | {id(f.b) for f in factors} == trained


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_dora": True}, "Dora"),
        ({"target_modules": ["image"]}, "image"),
        ({"lora_bias": True}, "lora_B"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
    ],
)
def test_what_is_no_plain_product_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UntaxError) as error:
        found_in(peft_model(**changes))
    assert named in str(error.value)
    assert error.value.fix


def test_expert_parameters_are_refused() -> None:
    model = get_peft_model(Small(), LoraConfig(r=2, target_modules=["second"], target_parameters=["first.weight"]))
    with pytest.raises(UntaxError, match="ParamWrapper"):
        found_in(model)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(UntaxError, match="no trainable parameter") as error:
        found_in(Small().requires_grad_(False))
    assert "adapter: lora" in str(error.value)


def test_norms() -> None:
    first = ParameterDelta("a", torch.tensor([[1.0, -2.0], [0.0, 9e-6]]))
    second = LowRankDelta("b", torch.tensor([[3.0, 4.0]]), torch.tensor([[0.5]]), 2.0)
    norms = delta_norms([first, second])
    assert norms.l1 == pytest.approx(10.000009)
    assert norms.l2 == pytest.approx(30**0.5)
    assert norms.sparsity == pytest.approx((0.5 + 0.0) / 2), "each layer counts the same"
    assert norms.zeros == pytest.approx((0.25 + 0.0) / 2)
    assert norms.layers == 2
    assert delta_norms([]).layers == 0


def test_norms_count_beyond_single_precision() -> None:
    """fp32 cannot count past 2^24, nor add small numbers to a large sum."""
    big = torch.full((4099, 4097), 1e-6)
    norms = delta_norms([ParameterDelta("a", big)])
    assert norms.sparsity == 1
    assert norms.l1 == pytest.approx(big.numel() * float(torch.tensor(1e-6)), rel=1e-6)
