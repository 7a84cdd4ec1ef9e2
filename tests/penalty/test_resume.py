"""A training that is stopped and resumed ends with the same weights as one that was not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from toys import Workspace

from .float64 import deltas
from .recording import Recording

KEYS: dict[str, Any] = {
    "delta_l1": 0.02,
    "delta_log_steps": 1,
    "gradient_accumulation_steps": 2,
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 3,
    "save_total_limit": 5,
}
Train = Callable[[Path], None]


class Stopped(Exception):
    """As if the machine had gone down."""


@contextlib.contextmanager
def stopping(*, at: int) -> Iterator[None]:
    """Trainings end when ``at`` optimizer steps are done and the next has begun."""
    from transformers import Trainer

    step = Trainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == at:
            raise Stopped
        return step(self, *args, **kwargs)

    Trainer.training_step = training_step
    try:
        yield
    finally:
        Trainer.training_step = step


def check_resumed(workspace: Workspace, whole: str, resumed: str, weights: str) -> None:
    """Weights byte by byte, and manifests that tell the two apart."""
    one, two = (workspace.folder / folder / weights for folder in (whole, resumed))
    assert one.read_bytes() == two.read_bytes()
    full, part = (workspace.manifest(folder)["penalty"] for folder in (whole, resumed))
    assert (full["steps_before"], full["steps_penalised"]) == (0, 6)
    assert (part["steps_before"], part["steps_penalised"]) == (3, 3)
    assert full["l1_norm"] == part["l1_norm"] > 0
    assert full["l1_norm_start"] == 0 < part["l1_norm_start"]


def norm_after(recording: Recording, base: Any, steps: int) -> float:
    weights = next(step.weights for step in recording.steps if step.number == steps)
    return sum(delta.abs().sum().item() for delta in deltas(base, weights).values())


def test_lora_resumes_in_the_middle_of_lambda_s_warmup(
    workspace: Workspace,
    axolotl_train: Train,
    recording: Recording,
    base64: Any,
) -> None:
    keys = {**KEYS, "warmup_steps": 5, "lr_scheduler": "cosine", "delta_schedule": "linear_warmup"}
    axolotl_train(workspace.config("whole.yaml", **{**keys, "output_dir": "whole"}))
    assert len(recording.steps) == 6
    stopped = workspace.config("stopped.yaml", **keys, auto_resume_from_checkpoints=True)
    with stopping(at=4), pytest.raises(Stopped):
        axolotl_train(stopped)
    assert not (workspace.folder / "out" / "untax.json").exists()
    assert [path.name for path in (workspace.folder / "out").glob("checkpoint-*")] == ["checkpoint-3"]
    axolotl_train(stopped)
    assert [step.number for step in recording.steps] == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 3, 4, 5]
    check_resumed(workspace, "whole", "out", "adapter_model.safetensors")
    start = workspace.manifest()["penalty"]["l1_norm_start"]
    assert start == pytest.approx(norm_after(recording, base64, 3), rel=1e-6)


def test_full_fine_tuning_resumes_with_the_delta_from_the_pretrained_weights(
    workspace: Workspace, axolotl_train: Train, recording: Recording, base64: Any
) -> None:
    """Those of the checkpoint are not what the delta is from."""
    keys = {**KEYS, "adapter": None, "learning_rate": 0.001}
    axolotl_train(workspace.config("whole.yaml", **{**keys, "output_dir": "whole"}))
    axolotl_train(workspace.config("resumed.yaml", **keys, resume_from_checkpoint="whole/checkpoint-3"))
    assert [step.number for step in recording.steps] == [0, 1, 2, 3, 4, 5, 3, 4, 5]
    check_resumed(workspace, "whole", "out", "model.safetensors")
    section = workspace.manifest()["penalty"]
    assert section["l1_norm_start"] == pytest.approx(norm_after(recording, base64, 3), rel=1e-6)
    end = {name: p.detach() for name, p in recording.model.named_parameters()}
    norm = sum(delta.abs().sum().item() for delta in deltas(base64, end).values())
    assert section["l1_norm"] == pytest.approx(norm, rel=1e-6)
