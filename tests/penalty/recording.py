"""What a real trainer did in each optimizer step: weights, batches, and gradients at three places."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass
class Step:
    """One optimizer step as the trainer took it.

    Attributes:
        number: optimizer steps before it.
        weights: what is trained, as it was when the step began.
        batches: the micro-batches.
        before: gradients when the trainer's own backward passes were done.
        gradient: gradients when clipping began.
        clipped: gradients that the optimizer was called with; empty when fp16 skipped the step.
        loss_scale: what fp16 multiplied ``before`` and ``gradient`` by.
    """

    number: int
    weights: Tensors
    batches: list[Tensors]
    before: Tensors = dataclasses.field(default_factory=dict)
    gradient: Tensors = dataclasses.field(default_factory=dict)
    clipped: Tensors = dataclasses.field(default_factory=dict)
    loss_scale: float = 1.0

    def added(self) -> Tensors:
        """What came to the gradients between the last backward and the optimizer, in float64."""
        return {name: grad.double() - self.before[name].double() for name, grad in self.gradient.items()}


@dataclasses.dataclass
class Recording:
    """Steps, logs, and the last trainer's model."""

    steps: list[Step] = dataclasses.field(default_factory=list)
    logs: list[dict[str, float]] = dataclasses.field(default_factory=list)
    model: Any = None

    def losses(self) -> list[dict[str, float]]:
        """What was logged after optimizer steps."""
        return [entry for entry in self.logs if "loss" in entry]


def trainable(model: Any) -> Tensors:
    """Copies of what is trained, on the CPU as everything here."""
    return {name: _copy(p) for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: Any) -> Tensors:
    """Copies of the gradients; zeros where there is none."""
    return {
        name: torch.zeros_like(p, device="cpu") if p.grad is None else _copy(p.grad)
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def check_untouched(model: Any, step: Step) -> None:
    """Between the micro-batches of a step, nobody adds anything."""
    for name, grad in gradients(model).items():
        expected = step.before[name] if step.batches else torch.zeros_like(grad)
        assert torch.equal(grad, expected), f"something was added to {name} before micro-batch {len(step.batches)}"


@contextlib.contextmanager
def recorded() -> Iterator[Recording]:
    """Record every trainer that trains meanwhile. The penalty lies around ``training_step``, this within it."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook
    from transformers import Trainer

    record = Recording()
    inner_step, clip, log = Trainer.training_step, Trainer._clip_grad_norm, Trainer.log

    def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        record.model = self.model
        number = self.state.global_step
        if not record.steps or record.steps[-1].clipped or record.steps[-1].number != number:
            record.steps.append(Step(number, trainable(self.model), []))
        step = record.steps[-1]
        check_untouched(self.model, step)
        step.batches.append({key: _copy(kept) for key, kept in inputs.items() if isinstance(kept, torch.Tensor)})
        loss = inner_step(self, model, inputs, *args, **kwargs)
        step.before = gradients(self.model)
        step.loss_scale = self.accelerator.scaler.get_scale() if self.accelerator.scaler else 1.0
        return loss

    def before_clipping(self: Any, model: Any) -> Any:
        record.steps[-1].gradient = gradients(self.model)
        return clip(self, model)

    def before_optimizer(*_: Any) -> None:
        step = record.steps[-1]
        step.clipped = gradients(record.model)
        step.gradient = step.gradient or step.clipped

    def logged(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
        record.logs.append(dict(logs))
        return log(self, logs, *args, **kwargs)

    hook = register_optimizer_step_pre_hook(before_optimizer)
    wrapped = {"training_step": training_step, "_clip_grad_norm": before_clipping, "log": logged}
    try:
        with mock.patch.multiple(Trainer, **wrapped):
            yield record
    finally:
        hook.remove()
