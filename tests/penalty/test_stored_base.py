"""The pretrained weights read again from the base's files, instead of a copy in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from toys import BASE, Workspace
from untax.errors import UntaxError
from untax.penalty.reference import StoredBase

FULL: dict[str, Any] = {
    **dict.fromkeys(("adapter", "lora_r", "lora_alpha", "lora_dropout", "lora_target_linear")),
    "learning_rate": 1e-3,
    "delta_l1": 1e-3,
    "max_steps": 3,
}


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return load_file(BASE / "model.safetensors")


def test_rows_are_the_base_s(weights: dict[str, torch.Tensor]) -> None:
    base = StoredBase(str(BASE))
    for name, value in weights.items():
        read = base(name, torch.nn.Parameter(value.clone()))
        assert torch.equal(read(slice(0, 3)), value[:3])
        assert torch.equal(read(slice(5, 64)), value[5:64])


def test_rows_are_rounded_as_the_model_was_loaded(weights: dict[str, torch.Tensor]) -> None:
    """Later the parameter may be kept in fp32: the delta must be zero where nothing was trained."""
    base, name = StoredBase(str(BASE)), "model.layers.0.mlp.up_proj.weight"
    half = torch.nn.Parameter(weights[name].bfloat16())
    base(name, half)
    again = base(name, torch.nn.Parameter(half.detach().float()))
    assert torch.equal(again(slice(0, 9)).float(), half.detach()[:9].float())


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("model.layers.0.mlp.up_proj.weight", lambda value: value + 1e-3, "not what training begins with"),
        ("model.layers.0.mlp.up_proj.weight", lambda value: value[:-1], "with the shape"),
        ("model.layers.9.mlp.up_proj.weight", lambda value: value, "no tensor"),
    ],
)
def test_files_of_another_model_are_refused(
    weights: dict[str, torch.Tensor], name: str, change: Callable[[torch.Tensor], torch.Tensor], said: str
) -> None:
    value = weights["model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(UntaxError, match=said) as error:
        StoredBase(str(BASE))(name, torch.nn.Parameter(change(value)))
    assert "delta_base: keep" in str(error.value.fix)


def test_files_that_are_not_here() -> None:
    with pytest.raises(UntaxError, match="not on this machine"):
        StoredBase("nobody/nothing")


def test_trainings_are_the_same_to_the_byte(workspace: Workspace, axolotl_train: Callable[[Path], None]) -> None:
    for base in ("keep", "reread"):
        axolotl_train(workspace.config(**FULL, delta_base=base, output_dir=base))
    kept, reread = (workspace.manifest(base)["penalty"] for base in ("keep", "reread"))
    assert kept == reread
    assert kept["l1_norm_start"] == 0 < kept["l1_norm"]
    assert Path("keep/model.safetensors").read_bytes() == Path("reread/model.safetensors").read_bytes()
