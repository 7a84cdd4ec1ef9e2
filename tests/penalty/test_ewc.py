"""add_ewc against autograd in float64, with the Fisher information read by blocks; and files that do not fit."""

from __future__ import annotations

import contextlib
from pathlib import Path
from unittest import mock

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from untax.adapters import blocks
from untax.adapters.delta import LowRankDelta, ParameterDelta
from untax.adapters.statistics import Diagonal
from untax.errors import UntaxError
from untax.penalty.ewc import add_ewc

from .stand_in import StandIn, attach

SHAPES: dict[str, tuple[int, ...]] = {"matrix": (7, 4), "vector": (5,), "image": (3, 2, 2, 2)}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def fisher(tmp_path: Path) -> Diagonal:
    save_file({name: drawn(*shape) for name, shape in SHAPES.items()}, tmp_path / "fisher.safetensors")
    return Diagonal(tmp_path / "fisher.safetensors")


@pytest.mark.parametrize("elements", [1, 9, 1 << 18])
def test_on_factors(fisher: Diagonal, elements: int) -> None:
    """Each block of the delta meets its own rows of F."""
    a, b = torch.nn.Parameter(drawn(3, 4, seed=1) - 0.5), torch.nn.Parameter(drawn(7, 3, seed=2) - 0.5)
    with mock.patch.object(blocks, "CPU_ELEMENTS", elements):
        add_ewc(LowRankDelta("matrix", a, b, 2.5), weight=0.3, fisher=fisher)
    twins = [tensor.detach().double().requires_grad_() for tensor in (a, b)]
    loss = 0.3 / 2 * (drawn(7, 4).double() * (2.5 * twins[1] @ twins[0]) ** 2).sum()
    for tensor, expected in zip((a, b), torch.autograd.grad(loss, twins), strict=True):
        assert torch.allclose(tensor.grad.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("elements", [1, 9, 1 << 18])
def test_on_parameters(fisher: Diagonal, name: str, elements: int) -> None:
    theta, pretrained = torch.nn.Parameter(drawn(*SHAPES[name], seed=3)), drawn(*SHAPES[name], seed=4)
    with mock.patch.object(blocks, "CPU_ELEMENTS", elements):
        add_ewc(ParameterDelta(name, theta, lambda rows: pretrained[rows]), weight=0.3, fisher=fisher)
    expected = 0.3 * drawn(*SHAPES[name]) * (theta.detach() - pretrained)
    assert torch.allclose(theta.grad, expected, rtol=1e-5, atol=1e-7)


def test_the_file_is_only_read(fisher: Diagonal) -> None:
    before = fisher.path.read_bytes()
    theta = torch.nn.Parameter(drawn(5, seed=3))
    for _ in range(2):
        theta.grad = None
        add_ewc(ParameterDelta("vector", theta), weight=1.0, fisher=fisher)
    assert torch.allclose(theta.grad, drawn(5) * theta.detach())
    assert fisher.path.read_bytes() == before


EWC = {"delta_ewc": 1.0}


def stand_in_fisher(tmp_path: Path, **changes: torch.Tensor) -> Diagonal:
    """What fits the stand-in trainer's two linear layers, but for the changes."""
    tensors = {"0.weight": torch.ones(6, 5), "1.weight": torch.ones(3, 6)}
    save_file({**tensors, **{name.replace("_", "."): value for name, value in changes.items()}}, tmp_path / "f")
    return Diagonal(tmp_path / "f")


def test_on_a_trainer_whose_layers_fit(tmp_path: Path) -> None:
    """A weight of two in F is a lambda of two there."""
    ones, twos, plain = StandIn(), StandIn(), StandIn()
    attach(ones, {"delta_l2": 1.0})
    attach(twos, EWC, fisher=stand_in_fisher(tmp_path, **{"1_weight": torch.full((3, 6), 2.0)}))
    for trainer in (ones, twos, plain):
        trainer.training_step(torch.ones(2, 5))
    shares = [(b - p) / (a - p) for a, b, p in zip(ones.grads(), twos.grads(), plain.grads(), strict=True)]
    for share, expected in zip(shares, (1, 1, 2, 2), strict=True):
        assert float(share.median()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"1_weight": torch.ones(4, 6)}, r"1\.weight has the shape \[4, 6\].*\[3, 6\]"),
        ({"0_weight": torch.ones(5, 6)}, r"0\.weight has the shape \[5, 6\].*\[6, 5\]"),
    ],
)
def test_a_fisher_of_another_model_is_refused(tmp_path: Path, changes: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(UntaxError, match=said):
        attach(StandIn(), EWC, fisher=stand_in_fisher(tmp_path, **changes))


def test_a_layer_that_has_no_fisher_is_named(tmp_path: Path) -> None:
    save_file({"0.weight": torch.ones(6, 5)}, tmp_path / "f")
    with pytest.raises(UntaxError, match=r"1\.weight"):
        attach(StandIn(), EWC, fisher=Diagonal(tmp_path / "f"))
    attach(StandIn(), EWC, fisher=Diagonal(tmp_path / "f"), modules=("0",))


def test_an_embedding_s_delta_lies_the_other_way_round_and_is_refused(tmp_path: Path) -> None:
    """Even where it is square, so that the shapes would fit."""
    trainer = StandIn()
    words = torch.nn.Sequential(torch.nn.Embedding(5, 5), torch.nn.Linear(5, 3))
    trainer.model = get_peft_model(words, LoraConfig(r=2, target_modules=["0", "1"]))
    fisher = stand_in_fisher(tmp_path, **{"0_weight": torch.ones(5, 5), "1_weight": torch.ones(3, 5)})
    with pytest.raises(UntaxError, match="other way round"):
        attach(trainer, EWC, fisher=fisher)


@pytest.mark.parametrize(
    ("facts", "refused"),
    [({"base": "abc"}, False), ({}, False), ({"base": "other"}, True), ({"base": "abc", "adapter": "d"}, True)],
)
def test_a_fisher_that_names_another_model_is_refused(tmp_path: Path, facts: dict[str, str], refused: bool) -> None:
    from untax.penalty.plugin import _refuse_other_base

    save_file({"weight": torch.ones(2)}, tmp_path / "f.safetensors", metadata=facts)
    with pytest.raises(UntaxError, match="another model") if refused else contextlib.nullcontext():
        _refuse_other_base(Diagonal(tmp_path / "f.safetensors"), "abc")
