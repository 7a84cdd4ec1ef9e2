"""The kept copy of what is trained: of the weights as they were first seen."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from untax.adapters import blocks
from untax.adapters.delta import ParameterDelta
from untax.adapters.live import trained_tensors
from untax.errors import UntaxError
from untax.penalty.reference import KeptBase


@pytest.mark.parametrize("shape", [(), (5,), (5, 3), (4, 3, 2, 2)])
def test_rows_are_those_of_the_first_time(shape: tuple[int, ...]) -> None:
    """Training changes the parameter, and asking again, as when training begins, does not copy anew."""
    kept, theta = KeptBase(), torch.nn.Parameter(torch.rand(shape))
    first, before = kept("layer.weight", theta), theta.detach().clone()
    with torch.no_grad():
        theta.add_(1.0)
    again = kept("layer.weight", theta)
    for reference in (first, again):
        for rows in (slice(0, 2), slice(2, 4), slice(3, 4)):
            assert torch.equal(reference(rows), before[rows] if shape else before)
        assert not reference(slice(0, 1)).requires_grad
    with mock.patch.object(blocks, "CPU_ELEMENTS", 7):
        moved = torch.cat([block for _, block in ParameterDelta("layer.weight", theta, again).blocks()])
    assert torch.allclose(moved, torch.ones_like(moved))


def test_each_parameter_has_a_copy_of_its_own_in_its_own_dtype() -> None:
    kept = KeptBase()
    one, two = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    references = kept("one", one), kept("two", two)
    assert references[0](slice(0, 3)).tolist() == [0, 0, 0]
    assert references[1](slice(0, 3)).tolist() == [1, 1, 1]
    assert references[1](slice(0, 3)).dtype == torch.bfloat16


def test_a_parameter_that_another_one_replaces_keeps_its_reference() -> None:
    """Wrapping a model for training may make new parameters of the same names."""
    kept, model = KeptBase(), torch.nn.Linear(3, 2)
    for trained in trained_tensors(model):
        trained.delta(kept)
    before = model.weight.detach().clone()
    model.weight = torch.nn.Parameter(before + 0.5)
    weight = next(trained.delta(kept) for trained in trained_tensors(model) if trained.name == "weight")
    moved = torch.cat([block for _, block in weight.blocks()])
    assert torch.allclose(moved, torch.full((2, 3), 0.5))


def test_weights_that_are_not_there_are_refused() -> None:
    with pytest.raises(UntaxError, match=r"weights of layer\.weight are not loaded") as error:
        KeptBase()("layer.weight", torch.nn.Parameter(torch.empty(3, 2, device="meta")))
    assert "cpu_ram_efficient_loading" in str(error.value.where)
