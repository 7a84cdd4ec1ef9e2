"""How lambda rises, by the number of the step alone, and through Axolotl's real trainer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from toys import Workspace
from untax.penalty.schedule import factor

from .float64 import error_of_added, gradients_of_penalty, l1, size
from .recording import Recording

LAMBDA = 0.01
Train = Callable[[Path], None]


def trainer_at(step: int, total: int, warmup: float) -> Any:
    """With the arguments class of the real one."""
    from transformers import TrainingArguments

    arguments = TrainingArguments(output_dir="unused", warmup_steps=warmup, use_cpu=True)
    return SimpleNamespace(args=arguments, state=SimpleNamespace(global_step=step, max_steps=total))


def factors(total: int, warmup: float, schedule: str = "linear_warmup") -> list[float]:
    trainer = trainer_at(0, total, warmup)
    found = []
    for step in range(total):
        trainer.state.global_step = step
        found.append(factor(trainer, schedule))
    return found


@pytest.mark.parametrize(
    ("total", "warmup", "expected"),
    [
        (6, 4, [0.25, 0.5, 0.75, 1, 1, 1]),
        (20, 0, [0.5, *[1] * 19]),
        (11, 0, [0.5, *[1] * 10]),
        (3, 0, [1, 1, 1]),
        (3, 6, [1 / 6, 2 / 6, 3 / 6]),
        (10, 0.4, [0.25, 0.5, 0.75, *[1] * 7]),
    ],
)
def test_warmup(total: int, warmup: float, expected: list[float]) -> None:
    """Over the learning rate's warm-up, given in steps or as a share; over a tenth of all steps without one."""
    assert factors(total, warmup) == pytest.approx(expected)


@examples(max_examples=40, deadline=None, derandomize=True)
@given(total=st.integers(1, 60), warmup=st.integers(0, 80))
def test_it_rises_evenly_from_the_first_step_on_and_stays_at_1(total: int, warmup: int) -> None:
    found = factors(total, warmup)
    length = warmup or math.ceil(total / 10)
    assert found[0] == pytest.approx(1 / length)
    assert found == sorted(found)
    assert found[length - 1 :] == [1.0] * max(0, total - length + 1)
    steps = [after - before for before, after in itertools.pairwise(found[:length])]
    assert steps == pytest.approx([1 / length] * len(steps))
    assert factors(total, warmup, "constant") == [1.0] * total


@pytest.mark.parametrize(
    ("keys", "expected"),
    [({"warmup_steps": 3, "max_steps": 4}, [1 / 3, 2 / 3, 1, 1]), ({"max_steps": 11}, [1 / 2, *[1] * 10])],
)
def test_through_the_trainer(
    workspace: Workspace,
    axolotl_train: Train,
    recording: Recording,
    base64: Any,
    keys: dict[str, Any],
    expected: list[float],
) -> None:
    """On the factors, whose penalty is not 0 at the first step."""
    keys = {"delta_schedule": "linear_warmup", "delta_target": "factors", "warmup_steps": 0, **keys}
    axolotl_train(workspace.config(delta_l1=LAMBDA, **{"gradient_accumulation_steps": 2, **keys}))
    assert len(recording.steps) == len(expected)
    for step, share in zip(recording.steps, expected, strict=True):
        of_penalty = gradients_of_penalty(base64, step, lambda _, leaves: l1(LAMBDA)(leaves, leaves))
        error = error_of_added(step, of_penalty, share)
        print(f"step {step.number}: lambda * {share:.2f}, relative error {error:.1e}")
        assert size(of_penalty) > 0
        assert error < 1e-4
    assert workspace.manifest()["penalty"]["schedule"] == keys["delta_schedule"]
