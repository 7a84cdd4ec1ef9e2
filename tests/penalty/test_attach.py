"""How penalties are put onto a trainer, with stand-in trainers: loss scaling, refusals, several penalties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from untax.adapters.delta import LiveDelta
from untax.errors import UntaxError

from .stand_in import Scaler, StandIn, attach

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
L1 = {"delta_l1": 0.1}


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
    def add_squares(delta: LiveDelta, *, weight: float) -> None:
        delta.add_gradient(lambda _, block: 2 * block, weight)

    both, one, bare = StandIn(), StandIn(), StandIn()
    attached = attach(both, {**L1, "delta_squares": 0.01}, ("delta_squares", add_squares))
    attach(one, L1)
    for trainer in (both, one, bare):
        trainer.training_step(X)
    weights = [p for p in both.model.parameters() if p.requires_grad]
    norm = sum((d.scale * d.b @ d.a).pow(2).sum() for d in attached.deltas)
    for got, with_l1, extra in zip(both.grads(), one.grads(), torch.autograd.grad(norm, weights), strict=True):
        assert torch.allclose(got - with_l1, 0.01 * extra, rtol=1e-3, atol=1e-6)


def test_norms_are_logged_beside_the_loss_only() -> None:
    trainer = StandIn()
    attached = attach(trainer, L1)
    trainer.log({"loss": 1.0})
    trainer.log({"eval_loss": 1.0})
    assert trainer.logged[0] == {"loss": 1.0, "l1_norm": attached.norms().l1, "sparsity": attached.norms().sparsity}
    assert trainer.logged[1] == {"eval_loss": 1.0}


@pytest.mark.parametrize(
    ("kind", "stage", "said"),
    [("DEEPSPEED", 2, "ZeRO-2.*backward"), ("DEEPSPEED", 3, "ZeRO-3.*divides"), ("FSDP", 0, "FSDP1")],
)
def test_sharded_training_is_refused(kind: str, stage: int, said: str) -> None:
    with pytest.raises(UntaxError, match=said):
        attach(StandIn(kind=kind, stage=stage), L1)


@pytest.mark.parametrize("optim", ["lomo", "adalomo", "galore_adamw_layerwise"])
def test_optimizers_that_step_in_the_backward_pass_are_refused(optim: str) -> None:
    with pytest.raises(UntaxError, match=optim):
        attach(StandIn(optim=optim), L1)


def test_a_trainer_is_penalised_once() -> None:
    trainer: Any = StandIn()
    attach(trainer, L1)
    with pytest.raises(UntaxError, match="already"):
        attach(trainer, L1)


def test_a_layer_without_factors_is_not_left_out_in_silence() -> None:
    trainer = StandIn()
    layers = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Linear(6, 3))
    trainer.model = get_peft_model(layers, LoraConfig(r=2, target_modules=["0"], modules_to_save=["1"]))
    with pytest.raises(UntaxError, match=r"nothing would penalise 1\.weight"):
        attach(trainer, L1, target="factors")
    attach(trainer, L1, target="factors", modules=("0",))
