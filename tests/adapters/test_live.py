"""Which factors of a PEFT model are penalised, and which adapters are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from untax.adapters.live import trainable_factors
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


def merged_change(model: Any, name: str) -> torch.Tensor:
    """What PEFT itself adds to a weight."""
    return model.base_model.model.get_submodule(name).get_delta_weight("default").double()


@pytest.mark.parametrize(
    "changes", [{}, {"use_rslora": True}, {"rank_pattern": {"first": 1}, "alpha_pattern": {"second": 5}}]
)
def test_deltas_are_what_peft_would_merge(changes: dict[str, Any]) -> None:
    model = peft_model(**changes)
    found = {factors.name.removeprefix("base_model.model."): factors for factors in trainable_factors(model)}
    assert set(found) == {"first", "second"}
    for name, factors in found.items():
        assert torch.allclose(factors.delta().double(), merged_change(model, name), rtol=1e-5, atol=1e-7)


def test_embedding_factors_are_covered() -> None:
    model = peft_model(target_modules=["words", "first"])
    found = {factors.name.removeprefix("base_model.model."): factors for factors in trainable_factors(model)}
    assert torch.allclose(found["words"].delta().double().T, merged_change(model, "words"), rtol=1e-5, atol=1e-7)


def test_a_frozen_reference_adapter_is_left_out() -> None:
    """TRL keeps a copy named "ref" beside the adapter that DPO trains."""
    model = peft_model()
    model.add_adapter("ref", model.peft_config["default"])
    model.set_adapter("default")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".default" in name)
    factors = trainable_factors(model)
    trained = {id(p) for n, p in model.named_parameters() if ".default" in n}
    assert len(factors) == 2
    assert {id(f.a) for f in factors} | {id(f.b) for f in factors} == trained


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_dora": True}, "Dora"),
        ({"modules_to_save": ["head"]}, "head"),
        ({"bias": "lora_only"}, "bias"),
        ({"bias": "all"}, "bias"),
        ({"target_modules": ["image"]}, "image"),
        ({"lora_bias": True}, "lora_B"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
    ],
)
def test_what_is_no_plain_product_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UntaxError) as error:
        trainable_factors(peft_model(**changes))
    assert named in str(error.value)
    assert error.value.fix


def test_expert_parameters_are_refused() -> None:
    model = get_peft_model(Small(), LoraConfig(r=2, target_modules=["second"], target_parameters=["first.weight"]))
    with pytest.raises(UntaxError, match="ParamWrapper"):
        trainable_factors(model)


def test_full_fine_tuning_is_refused() -> None:
    with pytest.raises(UntaxError, match="no trainable LoRA layer") as error:
        trainable_factors(Small())
    assert "adapter: lora" in str(error.value)


def test_norms() -> None:
    deltas = [torch.tensor([[1.0, -2.0], [0.0, 9e-6]]), torch.tensor([[3.0, 4.0]])]
    norms = delta_norms(deltas)
    assert norms.l1 == pytest.approx(10.000009)
    assert norms.sparsity == pytest.approx((0.5 + 0.0) / 2), "each layer counts the same"
    assert norms.layers == 2
    assert delta_norms([]).layers == 0
