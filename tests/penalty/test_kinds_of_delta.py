"""Penalties on every kind of delta, through Axolotl's real trainer, against autograd in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from toys import Workspace

from .float64 import (
    OVER_ALL_TOKENS,
    Penalty,
    deltas,
    error_of_added,
    error_of_gradient,
    gradients_of_loss,
    gradients_of_penalty,
    l1,
    l2,
    size,
)
from .recording import Recording, Tensors

KEYS: dict[str, Any] = {"delta_log_steps": 1, "max_steps": 3}
Train = Callable[[Path], None]


@pytest.fixture
def fisher(workspace: Workspace, base64: Any) -> Tensors:
    """One number for each weight of the base, in ``fisher.safetensors``."""
    drawn = torch.Generator().manual_seed(3)
    values = {name: torch.rand(p.shape, generator=drawn) ** 4 for name, p in base64.named_parameters()}
    save_file(values, workspace.folder / "fisher.safetensors")
    return {name: value.double() for name, value in values.items()}


def ewc(weight: float, fisher: Tensors) -> Penalty:
    return lambda changes, _: weight / 2 * sum((fisher[name] * delta**2).sum() for name, delta in changes.items())


def together(*penalties: Penalty) -> Penalty:
    return lambda changes, leaves: sum(penalty(changes, leaves) for penalty in penalties)


def check(recording: Recording, base: Any, penalty: Penalty, *, is_zero_at_first: bool = True) -> None:
    """The whole gradient, and what was added, of every step."""
    assert [step.number for step in recording.steps] == [0, 1, 2]
    for step in recording.steps:
        of_loss, _ = gradients_of_loss(base, step, over_all_tokens=OVER_ALL_TOKENS)
        of_penalty = gradients_of_penalty(base, step, penalty)
        whole, alone = error_of_gradient(step, of_loss, of_penalty), error_of_added(step, of_penalty)
        print(f"step {step.number}: relative error {whole:.1e}, of the penalty {alone:.1e}")
        print(f"        ||penalty|| / ||loss|| {size(of_penalty) / size(of_loss):.2g}")
        assert whole < 1e-5
        assert alone < 1e-4
        assert bool(size(of_penalty)) == (step.number > 0 or not is_zero_at_first)
        assert step.number == 0 or size(of_penalty) > 0.01 * size(of_loss)


def check_end(workspace: Workspace, recording: Recording, base: Any, layers: int) -> None:
    """The manifest's norms are those of all deltas, before the first step and after the last."""
    section = workspace.manifest()["penalty"]
    end = {name: p.detach() for name, p in recording.model.named_parameters() if p.requires_grad}
    for weights, suffix in ((recording.steps[0].weights, "_start"), (end, "")):
        found = deltas(base, weights).values()
        assert section[f"l1_norm{suffix}"] == pytest.approx(sum(delta.abs().sum().item() for delta in found), rel=1e-5)
        squares = sum((delta**2).sum().item() for delta in found)
        assert section[f"l2_norm{suffix}"] == pytest.approx(squares**0.5, rel=1e-5)
    assert section["modules"] == layers
    assert section["steps_penalised"] == 3


def test_full_fine_tuning(workspace: Workspace, axolotl_train: Train, recording: Recording, base64: Any) -> None:
    axolotl_train(workspace.config(**KEYS, adapter=None, delta_l1=0.1, gradient_accumulation_steps=2))
    assert len(recording.steps[0].weights) == 47, "each weight of the base is trained"
    check(recording, base64, l1(0.1))
    check_end(workspace, recording, base64, 47)


def test_full_fine_tuning_with_ewc(
    workspace: Workspace, axolotl_train: Train, recording: Recording, base64: Any, fisher: Tensors
) -> None:
    axolotl_train(workspace.config(**KEYS, adapter=None, delta_ewc=100.0, delta_ewc_fisher="fisher.safetensors"))
    check(recording, base64, ewc(100.0, fisher))


def test_layers_that_are_saved_whole(
    workspace: Workspace, axolotl_train: Train, recording: Recording, base64: Any
) -> None:
    """Their copies are trained beside the factors; the tied head becomes a weight of its own."""
    axolotl_train(workspace.config(**KEYS, delta_l1=0.05, lora_modules_to_save=["embed_tokens", "lm_head"]))
    assert sum("modules_to_save" in name for name in recording.steps[0].weights) == 2
    check(recording, base64, l1(0.05))
    check_end(workspace, recording, base64, 37)


def test_l2_and_several_at_once(workspace: Workspace, axolotl_train: Train, recording: Recording, base64: Any) -> None:
    axolotl_train(workspace.config(**KEYS, delta_l1=0.01, delta_l2=20.0))
    check(recording, base64, together(l1(0.01), l2(20.0)))
    section = workspace.manifest()["penalty"]
    assert (section["l1"], section["l2"]) == (0.01, 20.0)


@pytest.mark.slow
def test_l2_alone(workspace: Workspace, axolotl_train: Train, recording: Recording, base64: Any) -> None:
    axolotl_train(workspace.config(**KEYS, delta_l2=20.0, gradient_accumulation_steps=2))
    check(recording, base64, l2(20.0))
    check_end(workspace, recording, base64, 35)


def test_ewc(workspace: Workspace, axolotl_train: Train, recording: Recording, base64: Any, fisher: Tensors) -> None:
    axolotl_train(workspace.config(**KEYS, delta_ewc=100.0, delta_ewc_fisher="fisher.safetensors"))
    check(recording, base64, ewc(100.0, fisher))
    inputs = workspace.manifest()["inputs"]
    assert [key for key in inputs if "fisher" in key], "a training is bound to its file"


def test_the_factors_themselves(workspace: Workspace, axolotl_train: Train, recording: Recording, base64: Any) -> None:
    """Another penalty than that on the product: A has a part in it from the start, and a layer saved whole none."""
    adapted = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    keys = {**KEYS, "delta_l1": 0.01, "delta_l2": 0.1, "delta_target": "factors", "delta_modules": adapted}
    axolotl_train(workspace.config(**keys, lora_modules_to_save=["embed_tokens", "lm_head"]))

    def penalty(_: Tensors, leaves: Tensors) -> torch.Tensor:
        factors = {name: value for name, value in leaves.items() if ".lora_" in name}
        return together(l1(0.01), l2(0.1))(factors, leaves)

    check(recording, base64, penalty, is_zero_at_first=False)
    assert workspace.manifest()["penalty"]["target"] == "factors"


@pytest.mark.parametrize(
    ("modules", "taken", "layers"),
    [
        (["q_proj", "layers.1.mlp.down_proj"], lambda name: "q_proj" in name or "layers.1.mlp.down" in name, 6),
        pytest.param(
            r"model\.layers\.[34]\..*",
            lambda name: "layers.3" in name or "layers.4" in name,
            14,
            marks=pytest.mark.slow,
        ),
    ],
    ids=["names", "expression"],
)
def test_some_layers_only(
    workspace: Workspace,
    axolotl_train: Train,
    recording: Recording,
    base64: Any,
    modules: Any,
    taken: Callable[[str], bool],
    layers: int,
) -> None:
    axolotl_train(workspace.config(**KEYS, delta_l1=0.05, delta_modules=modules))

    def penalty(changes: Tensors, leaves: Tensors) -> torch.Tensor:
        return l1(0.05)({name: delta for name, delta in changes.items() if taken(name)}, leaves)

    check(recording, base64, penalty)
    for step in recording.steps[1:]:
        touched = {name for name, grad in step.added().items() if grad.any()}
        assert touched == {name for name in step.weights if taken(name)}
    section = workspace.manifest()["penalty"]
    assert (section["modules"], section["only"]) == (layers, modules)


def test_qlora(workspace: Workspace, axolotl_train: Train, recording: Recording, base64: Any) -> None:
    """The base in 4 bits has no part in the delta; bitsandbytes computes with it on a CPU too."""
    pytest.importorskip("bitsandbytes", reason="Axolotl brings it along on Linux only")
    axolotl_train(workspace.config(**KEYS, delta_l1=0.01, adapter="qlora", load_in_4bit=True))
    quantised = [module for module in recording.model.modules() if "bitsandbytes" in type(module).__module__]
    packed = [layer.weight.numel() * layer.weight.element_size() for layer in quantised]
    assert packed == [layer.in_features * layer.out_features // 2 for layer in quantised]
    assert len(packed) == 35
    for step in recording.steps:
        error = error_of_added(step, gradients_of_penalty(base64, step, l1(0.01)))
        print(f"step {step.number}: relative error of the penalty {error:.1e}")
        assert error < 1e-4
    check_end(workspace, recording, base64, 35)
