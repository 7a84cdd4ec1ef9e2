"""SFT through Axolotl's real trainer: the gradient that the optimizer sees, against autograd in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toys import Workspace, write_jsonl

from . import float64
from .float64 import (
    OVER_ALL_TOKENS,
    distance,
    error_of_added,
    error_of_gradient,
    gradients_of_loss,
    gradients_of_penalty,
    l1,
    size,
    twice,
)
from .recording import Recording, Step, Tensors

LAMBDA = 0.01
Train = Callable[[Path], None]


@pytest.fixture
def unequal(workspace: Workspace) -> Workspace:
    """Ten rows of unequal length: five micro-batches of two, so that the last window of an epoch is shorter."""
    rows = [
        {"instruction": f"Count to {count}.", "input": "", "output": " and ".join(map(str, range(count + 1)))}
        for count in (1, 9, 2, 14, 3, 5, 11, 4, 7, 20)
    ]
    write_jsonl(workspace.folder / "sft.jsonl", rows)
    return workspace


def check_steps(
    recording: Recording,
    base: Any,
    scale: float64.Scale = twice,
    weight: float = LAMBDA,
    *,
    over_all_tokens: bool = OVER_ALL_TOKENS,
) -> None:
    """Gradient and log of every step."""
    for step, entry in zip(recording.steps, recording.losses(), strict=True):
        of_loss, loss = gradients_of_loss(base, step, scale, over_all_tokens=over_all_tokens)
        of_penalty = gradients_of_penalty(base, step, l1(weight), scale)
        whole = error_of_gradient(step, of_loss, of_penalty, scale)
        alone = error_of_added(step, of_penalty, scale=scale)
        print(f"step {step.number}: {len(step.batches)} batches, relative error {whole:.1e}, of penalty {alone:.1e}")
        print(f"        ||penalty|| / ||loss|| {size(of_penalty) / size(of_loss):.2f}")
        assert whole < 1e-5
        assert alone < 1e-4
        assert step.number > 0 or not size(of_penalty), "B = 0: the subgradient is 0"
        assert entry["loss"] == pytest.approx(loss, rel=1e-5), "the logged loss is the pure cross-entropy"
    check_norms(recording, base, scale)


def check_norms(recording: Recording, base: Any, scale: float64.Scale) -> None:
    """They are logged after a step, so with the next step's weights."""
    for entry, step in zip(recording.losses(), recording.steps[1:], strict=False):
        after = float64.deltas(base, step.weights, scale).values()
        small = [(delta.abs() < 1e-5).double().mean().item() for delta in after]
        assert entry["l1_norm"] == pytest.approx(sum(delta.abs().sum().item() for delta in after), rel=1e-5)
        assert entry["sparsity"] == pytest.approx(sum(small) / len(small), abs=1e-4)


def check_clipping(step: Step, max_grad_norm: float) -> None:
    length = size(step.gradient)
    assert length > max_grad_norm, "clipping was at work"
    factor = max_grad_norm / (length + 1e-6) if max_grad_norm else 1.0
    expected: Tensors = {name: grad.double() * factor for name, grad in step.gradient.items()}
    assert distance(step.clipped, expected) < 1e-5


@pytest.mark.parametrize(
    ("accumulation", "max_grad_norm", "windows"),
    [(1, 0.0, [1, 1, 1, 1]), (1, 0.1, [1, 1, 1, 1]), (3, 0.1, [3, 2, 3, 2]), (4, 0.0, [4, 1, 4, 1])],
)
def test_gradient_is_that_of_loss_plus_penalty(
    unequal: Workspace,
    axolotl_train: Train,
    recording: Recording,
    base64: Any,
    accumulation: int,
    max_grad_norm: float,
    windows: list[int],
) -> None:
    keys = {"gradient_accumulation_steps": accumulation, "max_grad_norm": max_grad_norm, "num_epochs": 2}
    axolotl_train(unequal.config(delta_l1=LAMBDA, delta_log_steps=1, **{**keys, "max_steps": 4}))
    assert [len(step.batches) for step in recording.steps] == windows
    labelled = {int((batch["labels"] != -100).sum()) for step in recording.steps for batch in step.batches}
    assert len(labelled) > 3, "micro-batches with unequal numbers of tokens"
    check_steps(recording, base64)
    for step in recording.steps:
        check_clipping(step, max_grad_norm)
    section = unequal.manifest()["penalty"]
    assert section["l1"] == LAMBDA
    assert section["steps_penalised"] == unequal.manifest()["training"]["steps"] == 4
    assert section["steps_before"] == 0
    assert section["modules"] == 35


def test_gradient_under_the_normalisation_of_later_axolotl(
    unequal: Workspace,
    axolotl_train: Train,
    recording: Recording,
    base64: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Axolotl 0.21 lets the model divide by all labelled tokens of the step; the penalty must not feel it."""
    from transformers import Trainer

    get_batches = Trainer.get_batch_samples

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.model_accepts_loss_kwargs = True
        batches, count = get_batches(self, *args, **kwargs)
        assert count is not None
        return batches, count

    monkeypatch.setattr(Trainer, "get_batch_samples", counting)
    axolotl_train(unequal.config(delta_l1=LAMBDA, delta_log_steps=1, gradient_accumulation_steps=3, max_steps=4))
    assert [len(step.batches) for step in recording.steps] == [3, 2, 3, 2]
    check_steps(recording, base64, over_all_tokens=True)


def test_rslora_and_patterns_scale_each_layer_by_its_own_s(
    workspace: Workspace,
    axolotl_train: Train,
    recording: Recording,
    base64: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import peft

    build = peft.LoraConfig.__init__

    def with_patterns(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **{**kwargs, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 20}})

    monkeypatch.setattr(peft.LoraConfig, "__init__", with_patterns)
    axolotl_train(workspace.config(delta_l1=LAMBDA, delta_log_steps=1, peft_use_rslora=True, max_steps=3))

    def scale(name: str) -> float:
        rank = 2 if "q_proj" in name else 4
        return (20 if "down_proj" in name else 8) / rank**0.5

    factor = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert recording.steps[0].weights[factor].shape[0] == 2
    check_steps(recording, base64, scale)


def test_lambda_zero_leaves_the_gradient_alone(
    workspace: Workspace, axolotl_train: Train, recording: Recording, base64: Any
) -> None:
    axolotl_train(workspace.config(delta_l1=0.0))
    assert len(recording.steps) == 2
    for step in recording.steps:
        of_loss, _ = gradients_of_loss(base64, step, over_all_tokens=OVER_ALL_TOKENS)
        assert distance(step.gradient, of_loss) < 1e-5
        assert not size(step.added())
    assert "penalty" not in workspace.manifest()
    assert "l1_norm" not in recording.logs[0]


@pytest.mark.parametrize(("interval", "logged"), [(2, [True, False, True, False]), (0, [False] * 4)])
def test_norms_are_logged_every_so_many_steps(
    workspace: Workspace, axolotl_train: Train, recording: Recording, interval: int, logged: list[bool]
) -> None:
    axolotl_train(workspace.config(delta_l1=LAMBDA, delta_log_steps=interval, max_steps=4))
    assert ["l1_norm" in entry for entry in recording.losses()] == logged
    assert ["sparsity" in entry for entry in recording.losses()] == logged
    assert workspace.manifest()["penalty"]["l1_norm"] > 0
