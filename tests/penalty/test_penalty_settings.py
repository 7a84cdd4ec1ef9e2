"""Bad penalty keys: one plain error with everything that is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from untax.errors import UntaxError
from untax.penalty.settings import check_training, read_lambdas


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-0.1, "finite number >= 0"),
        (float("nan"), "finite number >= 0"),
        (float("inf"), "finite number >= 0"),
        ("1e-4", "write 0.0001 or 1.0e-4"),
        (True, "is no number"),
        ([0.1], "is no number"),
    ],
)
def test_bad_lambda(value: Any, said: str) -> None:
    with pytest.raises(UntaxError) as error:
        read_lambdas({"delta_l1": value}, where="sparse.yaml")
    assert said in str(error.value)
    assert "sparse.yaml" in str(error.value)
    assert "delta_l1" in str(error.value)


def test_all_problems_at_once_with_near_names() -> None:
    with pytest.raises(UntaxError) as error:
        read_lambdas({"delta_l1": -1, "delta_11": 0.1}, where="sparse.yaml")
    assert "delta_l1: -1" in str(error.value)
    assert "Did you mean 'delta_l1'?" in str(error.value)


def test_zero_and_none_ask_for_nothing() -> None:
    assert read_lambdas({"delta_l1": 0}, where="") == {}
    assert read_lambdas({"delta_l1": None, "learning_rate": 1}, where="") == {}
    assert read_lambdas({"delta_l1": 1}, where="") == {"delta_l1": 1.0}


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("adapter", {"adapter": None}),
        ("peft_use_dora", {"peft_use_dora": True}),
        ("relora", {"relora": True}),
        ("deepspeed", {"deepspeed": "zero3.json"}),
        ("fsdp_config", {"fsdp_config": {"fsdp_version": 2}}),
    ],
)
def test_trainings_out_of_reach_are_refused(key: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UntaxError) as error:
        check_training({"adapter": "lora", **changes}, where="sparse.yaml")
    assert key in str(error.value.where)
    check_training({"adapter": "qlora"}, where="sparse.yaml")
