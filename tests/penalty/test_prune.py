"""Pruned LoRA factors: exact zeros that stay, through Axolotl's real trainer, and the same after a resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from toys import Workspace
from untax.adapters.delta import LowRankDelta
from untax.adapters.stored import StoredAdapter
from untax.penalty.prune import Pruner, due

Train = Callable[[Path], None]
KEYS: dict[str, Any] = {"delta_sparsity": 0.9, "max_steps": 20, "save_steps": 8, "save_strategy": "steps"}


def layer(seed: int, rows: int = 12, columns: int = 10) -> LowRankDelta:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(3, columns, generator=generator).requires_grad_()
    b = torch.randn(rows, 3, generator=generator).requires_grad_()
    a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
    return LowRankDelta(f"layer{seed}", a, b, 2.0)


def zeros(deltas: list[LowRankDelta]) -> float:
    return sum(float((delta.delta() == 0).double().mean()) for delta in deltas) / len(deltas)


@hypothesis_settings(deadline=None, derandomize=True)
@given(target=st.floats(0.01, 0.99), steps=st.integers(1, 3000))
def test_the_schedule_rises_to_the_target(target: float, steps: int) -> None:
    curve = [due(target, step=step, steps=steps) for step in range(steps)]
    assert curve == sorted(curve)
    assert curve[0] == 0.0
    assert all(0 <= share <= target for share in curve)
    assert steps < 2 or curve[-1] == target
    assert len(set(curve)) <= 14


def test_pruned_rows_and_columns_stay_zero() -> None:
    deltas = [layer(0), layer(1)]
    pruner = Pruner(0.8)
    for step in range(20):
        before = zeros(deltas)
        pruner.mask_gradients(deltas)
        with torch.no_grad():
            for delta in deltas:  # momentum would move everything
                delta.a.add_(0.1)
                delta.b.add_(-0.1)
        pruner.prune(deltas, step=step, steps=20)
        assert zeros(deltas) >= max(before, due(0.8, step=step, steps=20))
    assert 0.8 <= zeros(deltas) < 0.9
    for delta in deltas:
        assert delta.b.grad is not None
        delta.a.grad, delta.b.grad = torch.ones_like(delta.a), torch.ones_like(delta.b)
    pruner.mask_gradients(deltas)
    for delta in deltas:
        assert torch.equal((delta.b == 0).all(1), (delta.b.grad == 0).all(1))
        assert torch.equal((delta.a == 0).all(0), (delta.a.grad == 0).all(0))


@pytest.mark.parametrize("zeroed", ["a", "b"])
def test_what_is_zero_by_itself_is_not_pruned(zeroed: str) -> None:
    """Before training B is zero, or A of an adapted embedding; a unit that is dead at times has a zero row."""
    delta = layer(2)
    with torch.no_grad():
        getattr(delta, zeroed).zero_()
    pruner = Pruner(0.5)
    pruner.prune([delta], step=0, steps=100)
    pruner.mask_gradients([delta])
    assert delta.a.grad is not None
    assert delta.b.grad is not None
    assert delta.a.grad.all()
    assert delta.b.grad.all()


def test_another_object_goes_on_from_the_masks() -> None:
    """As after a resume, also where a row that is left happens to be zero."""
    deltas = [layer(3), layer(4)]
    first = Pruner(0.9)
    for step in range(5):
        first.prune(deltas, step=step, steps=20)
    left = int(first.masks(deltas)["layer3.rows"].nonzero()[0])
    with torch.no_grad():
        deltas[0].b[left] = 0
    copies = [
        LowRankDelta(d.name, d.a.detach().clone().requires_grad_(), d.b.detach().clone().requires_grad_(), d.scale)
        for d in deltas
    ]
    second = Pruner(0.9)
    second.restore(first.masks(deltas), copies)
    with torch.no_grad():
        for one in (deltas, copies):
            one[0].b[left] = 5.0
    for step in range(5, 20):
        first.prune(deltas, step=step, steps=20)
        second.prune(copies, step=step, steps=20)
    for one, other in zip(deltas, copies, strict=True):
        assert torch.equal(one.a, other.a)
        assert torch.equal(one.b, other.b)
    assert deltas[0].b[left].any()


def test_an_adapted_embedding_is_trained_and_pruned(workspace: Workspace, axolotl_train: Train) -> None:
    """Its factors begin the other way round: A is zero."""
    targets = {"lora_target_linear": None, "lora_target_modules": ["embed_tokens", "down_proj"]}
    axolotl_train(workspace.config(**{**KEYS, **targets, "delta_sparsity": 0.5}))
    zeros_of = {name: float((delta == 0).double().mean()) for name, delta in StoredAdapter(Path("out")).deltas()}
    assert 0 < zeros_of["model.embed_tokens.weight"] < 1
    assert workspace.manifest()["penalty"]["pruned"] == {
        "layers": 6,
        "zeros": pytest.approx(sum(zeros_of.values()) / 6, abs=1e-9),
    }


def test_layers_that_are_trained_whole_do_not_count(workspace: Workspace, axolotl_train: Train) -> None:
    axolotl_train(workspace.config(**KEYS, lora_modules_to_save=["embed_tokens"]))
    section = workspace.manifest()["penalty"]
    assert section["modules"] == 36
    assert section["pruned"]["layers"] == 35
    assert section["pruned"]["zeros"] >= 0.9 > section["zeros"]


def test_axolotl_trains_a_delta_of_ninety_percent_zeros(workspace: Workspace, axolotl_train: Train) -> None:
    axolotl_train(workspace.config(**KEYS, delta_l1=1e-4))
    section = workspace.manifest()["penalty"]
    deltas = [delta for _, delta in StoredAdapter(Path("out")).deltas()]
    share = sum(float((delta == 0).double().mean()) for delta in deltas) / len(deltas)
    assert 0.9 <= share < 0.91
    assert section["zeros"] == pytest.approx(share, abs=1e-9)
    assert section["sparsity"] >= section["zeros"]
    assert section["pruned"] == {"layers": 35, "zeros": section["zeros"]}
    assert (section["sparsity_target"], section["steps_penalised"]) == (0.9, 20)
    assert any(delta.any() for delta in deltas)


def test_a_resumed_training_prunes_the_same(workspace: Workspace, axolotl_train: Train) -> None:
    axolotl_train(workspace.config(**KEYS))
    whole = Path("out/adapter_model.safetensors").read_bytes()
    axolotl_train(workspace.config(**KEYS, output_dir="again", resume_from_checkpoint="out/checkpoint-8"))
    assert Path("again/adapter_model.safetensors").read_bytes() == whole
    assert workspace.manifest("again")["penalty"]["steps_before"] == 8
