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


def test_nothing_counts_as_pruned_before_b_has_moved() -> None:
    delta = layer(2)
    with torch.no_grad():
        delta.b.zero_()
    Pruner(0.5).mask_gradients([delta])
    assert delta.b.grad is not None
    assert delta.b.grad.all()


def test_what_is_pruned_is_read_off_the_weights() -> None:
    """As after a resume: another object goes on where the first stopped."""
    deltas = [layer(3), layer(4)]
    first = Pruner(0.9)
    for step in range(5):
        first.prune(deltas, step=step, steps=20)
    copies = [
        LowRankDelta(d.name, d.a.detach().clone().requires_grad_(), d.b.detach().clone().requires_grad_(), d.scale)
        for d in deltas
    ]
    second = Pruner(0.9)
    for step in range(5, 20):
        first.prune(deltas, step=step, steps=20)
        second.prune(copies, step=step, steps=20)
    for one, other in zip(deltas, copies, strict=True):
        assert torch.equal(one.a, other.a)
        assert torch.equal(one.b, other.b)


def test_axolotl_trains_a_delta_of_ninety_percent_zeros(workspace: Workspace, axolotl_train: Train) -> None:
    axolotl_train(workspace.config(**KEYS, delta_l1=1e-4))
    section = workspace.manifest()["penalty"]
    deltas = [delta for _, delta in StoredAdapter(Path("out")).deltas()]
    share = sum(float((delta == 0).double().mean()) for delta in deltas) / len(deltas)
    assert 0.9 <= share < 0.91
    assert section["zeros"] == pytest.approx(share, abs=1e-9)
    assert section["sparsity"] >= section["zeros"]
    assert (section["sparsity_target"], section["steps_penalised"]) == (0.9, 20)
    assert any(delta.any() for delta in deltas)


def test_a_resumed_training_prunes_the_same(workspace: Workspace, axolotl_train: Train) -> None:
    axolotl_train(workspace.config(**KEYS))
    whole = Path("out/adapter_model.safetensors").read_bytes()
    axolotl_train(workspace.config(**KEYS, output_dir="again", resume_from_checkpoint="out/checkpoint-8"))
    assert Path("again/adapter_model.safetensors").read_bytes() == whole
    assert workspace.manifest("again")["penalty"]["steps_before"] == 8
