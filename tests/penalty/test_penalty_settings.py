"""Bad penalty keys: one plain error with everything that is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from untax.errors import UntaxError
from untax.penalty.reach import check_training
from untax.penalty.settings import PenaltySettings, read_settings


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-0.1, "finite number >= 0"),
        (10**400, "finite number >= 0"),
        (float("nan"), "finite number >= 0"),
        (float("inf"), "finite number >= 0"),
        ("1e-4", "write 0.0001 or 1.0e-4"),
        (True, "is no number"),
        ([0.1], "is no number"),
    ],
)
def test_bad_lambda(value: Any, said: str) -> None:
    with pytest.raises(UntaxError) as error:
        read_settings({"delta_l1": value}, where="sparse.yaml")
    assert said in str(error.value)
    assert "sparse.yaml" in str(error.value)
    assert "delta_l1" in str(error.value)


def test_all_problems_at_once_with_near_names() -> None:
    with pytest.raises(UntaxError) as error:
        read_settings({"delta_l1": -1, "delta_11": 0.1}, where="sparse.yaml")
    assert "delta_l1: -1" in str(error.value)
    assert "Did you mean 'delta_l1'?" in str(error.value)


def test_zero_and_none_ask_for_nothing() -> None:
    assert read_settings({"delta_l1": 0}, where="") == PenaltySettings()
    assert read_settings({"delta_l1": None, "learning_rate": 1}, where="") == PenaltySettings()
    assert read_settings({"delta_l1": 1}, where="") == PenaltySettings({"delta_l1": 1.0})


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("adapter", {"adapter": "llama-adapter"}),
        ("peft_use_dora", {"peft_use_dora": True}),
        ("relora", {"relora": True}),
        ("lisa_step_interval", {"lisa_step_interval": 20, "lisa_n_layers": 4}),
        ("peft_init_lora_weights", {"peft_init_lora_weights": "pissa_niter_4"}),
        ("load_best_model_at_end", {"delta_sparsity": 0.9, "load_best_model_at_end": True}),
        ("deepspeed", {"deepspeed": "zero3.json"}),
        ("fsdp_version", {"fsdp_config": {"offload_params": False}}),
        ("fsdp_version", {"fsdp": ["full_shard"]}),
        ("offload_params", {"fsdp_version": 2, "fsdp_config": {"offload_params": True}}),
        (
            "ram_efficient",
            {"adapter": None, "fsdp_version": 2, "fsdp_config": {"fsdp_cpu_ram_efficient_loading": True}},
        ),
        ("ram_efficient", {"adapter": None, "fsdp_version": 2, "fsdp_config": {"cpu_ram_efficient_loading": True}}),
    ],
)
def test_trainings_out_of_reach_are_refused(key: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UntaxError) as error:
        check_training({"adapter": "lora", **changes}, where="sparse.yaml")
    assert key in str(error.value.where)


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": "qlora"},
        {"adapter": None},
        {"fsdp_version": 2, "fsdp_config": {"cpu_ram_efficient_loading": True}},
        {"fsdp_config": {"fsdp_version": 2}},
        {"fsdp_config": {"version": 2}},
        {"load_best_model_at_end": True},
    ],
)
def test_trainings_within_reach(changes: dict[str, Any]) -> None:
    check_training({"adapter": "lora", **changes}, where="sparse.yaml")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"delta_target": "B@A"}, "delta_target: 'B@A'; known are product and factors"),
        ({"delta_schedule": "cosine"}, "known are constant and linear_warmup"),
        ({"delta_modules": []}, "give a list of module names"),
        ({"delta_modules": ["q_proj", 3]}, "give a list of module names"),
        ({"delta_modules": "("}, "no regular expression"),
        ({"delta_log_steps": -1}, "no number of steps"),
        ({"delta_log_steps": True}, "no number of steps"),
        ({"delta_ewc": 1.0}, "delta_ewc_fisher is missing"),
        ({"delta_ewc_fisher": "f.safetensors"}, "its lambda, is missing"),
        ({"delta_ewc_fisher": "f.pt", "delta_ewc": 1.0}, "no path of a .safetensors file"),
        ({"delta_ewc_fisher": "f.safetensors", "delta_ewc": 1.0, "delta_target": "factors"}, "not of the factors"),
        ({"delta_target": "factors", "adapter": None}, "without an adapter"),
        ({"delta_base": "keep"}, "stay in the model anyway"),
        ({"delta_base": "disk", "adapter": None}, "known are keep and reread"),
        ({"delta_l1": None, "delta_target": "factors"}, "no penalty is asked for"),
    ],
)
def test_bad_options(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UntaxError) as error:
        read_settings({"adapter": "lora", "delta_l1": 0.1, **changes}, where="sparse.yaml")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("modules", "taken"),
    [
        (None, {"model.layers.0.q_proj", "model.layers.10.mlp.down_proj", "lm_head"}),
        (("q_proj", "lm_head"), {"model.layers.0.q_proj", "lm_head"}),
        (("proj",), set()),
        (("layers.0.q_proj",), {"model.layers.0.q_proj"}),
        (r".*layers\.1\d\..*", {"model.layers.10.mlp.down_proj"}),
        ("q_proj", set()),
    ],
)
def test_modules_are_chosen_as_in_peft(modules: Any, taken: set[str]) -> None:
    names = {"model.layers.0.q_proj", "model.layers.10.mlp.down_proj", "lm_head"}
    settings = PenaltySettings(modules=modules)
    assert {name for name in names if settings.covers(f"{name}.weight")} == taken


def test_a_plain_training_reads_as_nothing_to_do() -> None:
    assert not read_settings({"adapter": "lora"}, where="x").lambdas


def test_a_fisher_file_is_not_looked_at_when_ewc_is_off() -> None:
    given = {"adapter": "lora", "delta_l1": 0.1, "delta_ewc": 0, "delta_ewc_fisher": "gone.safetensors"}
    assert read_settings(given, where="x").ewc_fisher is None
    assert read_settings({**given, "delta_ewc": 0.1}, where="x").ewc_fisher == "gone.safetensors"


@pytest.mark.parametrize("name", ["my_norm", "delta_target"])
def test_penalties_that_could_be_no_key(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("untax.penalty.settings.registry", lambda hook: {"delta_l1": None, name: None})
    with pytest.raises(UntaxError, match=name):
        read_settings({"delta_l1": 0.1}, where="x")


def test_penalties_of_plugins_may_take_the_fisher_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("untax.penalty.settings.registry", lambda hook: {"delta_l1": None, "delta_mine": None})
    given = {"adapter": "lora", "delta_mine": 0.1, "delta_ewc_fisher": "f.safetensors"}
    assert read_settings(given, where="x").ewc_fisher == "f.safetensors"
