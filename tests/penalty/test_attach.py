"""How penalties are put onto a trainer, with stand-in trainers: loss scaling, refusals, several penalties."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from untax.adapters.live import Factors
from untax.errors import UntaxError
from untax.penalty.attach import attach
from untax.penalty.l1 import add_l1_subgradient


class Scaler:
    """As torch.amp.GradScaler answers; accelerate builds none on a CPU."""

    def __init__(self, scale: float, enabled: bool = True) -> None:
        self.scale, self.enabled = scale, enabled

    def get_scale(self) -> float:
        return self.scale

    def is_enabled(self) -> bool:
        return self.enabled


class StandIn:
    def __init__(self, *, scaler: Scaler | None = None, kind: str = "NO", optim: str = "adamw_torch") -> None:
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Linear(6, 3))
        self.model = get_peft_model(layers, LoraConfig(r=2, target_modules=["0", "1"], init_lora_weights=False))
        self.accelerator = SimpleNamespace(distributed_type=kind, sync_gradients=True, scaler=scaler)
        self.args = SimpleNamespace(optim=optim)
        self.state = SimpleNamespace(global_step=0)
        self.logged: list[dict[str, float]] = []

    def training_step(self, x: torch.Tensor) -> torch.Tensor:
        loss = (self.model(x) ** 2).mean()
        scaler = self.accelerator.scaler
        (loss * (scaler.scale if scaler and scaler.enabled else 1)).backward()
        return loss.detach()

    def log(self, logs: dict[str, float]) -> None:
        self.logged.append(logs)

    def grads(self) -> list[torch.Tensor]:
        return [p.grad.clone() for p in self.model.parameters() if p.requires_grad]


X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
L1 = {"delta_l1": (add_l1_subgradient, 0.1)}


@pytest.mark.parametrize("scale", [65536.0, 1024.0])
def test_the_penalty_carries_the_loss_scale(scale: float) -> None:
    """After unscaling, fp16 training sees the gradient that full precision sees."""
    plain, scaled = StandIn(), StandIn(scaler=Scaler(scale))
    for trainer in (plain, scaled):
        attach(trainer, L1)
        trainer.training_step(X)
    for full, half in zip(plain.grads(), scaled.grads(), strict=True):
        assert torch.allclose(full, half / scale, rtol=1e-5, atol=1e-7)


def test_a_scaler_that_is_off_scales_nothing() -> None:
    plain, off = StandIn(), StandIn(scaler=Scaler(65536.0, enabled=False))
    for trainer in (plain, off):
        attach(trainer, L1)
        trainer.training_step(X)
    assert all(torch.equal(a, b) for a, b in zip(plain.grads(), off.grads(), strict=True))


def test_nothing_is_added_between_optimizer_steps() -> None:
    trainer, bare = StandIn(), StandIn()
    attached = attach(trainer, L1)
    trainer.accelerator.sync_gradients = False
    for each in (trainer, bare):
        each.training_step(X)
    assert all(torch.equal(a, b) for a, b in zip(trainer.grads(), bare.grads(), strict=True))
    assert attached.steps == 0


def test_steps_are_counted_from_where_the_trainer_resumed() -> None:
    trainer = StandIn()
    attached = attach(trainer, L1)
    trainer.state.global_step = 40
    trainer.training_step(X)
    trainer.state.global_step = 41
    trainer.training_step(X)
    assert (attached.steps_before, attached.steps) == (40, 2)


def test_several_penalties_are_added_up() -> None:
    def add_l2(factors: Factors, *, weight: float) -> None:
        delta = factors.delta()
        factors.b.grad += 2 * weight * factors.scale * delta @ factors.a.detach().T
        factors.a.grad += 2 * weight * factors.scale * factors.b.detach().T @ delta

    both, one, bare = StandIn(), StandIn(), StandIn()
    attached = attach(both, {**L1, "delta_l2": (add_l2, 0.01)})
    attach(one, L1)
    for trainer in (both, one, bare):
        trainer.training_step(X)
    assert attached.weights == {"delta_l1": 0.1, "delta_l2": 0.01}
    weights = [p for p in both.model.parameters() if p.requires_grad]
    norm = sum((f.scale * f.b @ f.a).pow(2).sum() for f in attached.factors)
    for got, with_l1, extra in zip(both.grads(), one.grads(), torch.autograd.grad(norm, weights), strict=True):
        assert torch.allclose(got - with_l1, 0.01 * extra, rtol=1e-3, atol=1e-6)


def test_norms_are_logged_beside_the_loss_only() -> None:
    trainer = StandIn()
    attached = attach(trainer, L1)
    trainer.log({"loss": 1.0})
    trainer.log({"eval_loss": 1.0})
    assert trainer.logged[0] == {"loss": 1.0, "l1_norm": attached.norms().l1, "sparsity": attached.norms().sparsity}
    assert trainer.logged[1] == {"eval_loss": 1.0}


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP"])
def test_sharded_training_is_refused(kind: str) -> None:
    with pytest.raises(UntaxError, match=kind):
        attach(StandIn(kind=kind), L1)


@pytest.mark.parametrize("optim", ["lomo", "adalomo", "galore_adamw_layerwise"])
def test_optimizers_that_step_in_the_backward_pass_are_refused(optim: str) -> None:
    with pytest.raises(UntaxError, match=optim):
        attach(StandIn(optim=optim), L1)


def test_a_trainer_is_penalised_once() -> None:
    trainer: Any = StandIn()
    attach(trainer, L1)
    with pytest.raises(UntaxError, match="already"):
        attach(trainer, L1)
