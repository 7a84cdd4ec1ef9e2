"""Other trainers and precisions: what is added to the trainer's own gradient is lambda times float64 autograd's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from toys import Workspace, preference_rows, sft_rows, write_jsonl

from .float64 import (
    OVER_ALL_TOKENS,
    distance,
    error_of_added,
    error_of_gradient,
    gradients_of_loss,
    gradients_of_penalty,
    l1,
    size,
)
from .recording import Recording

LAMBDA = 0.01
KEYS: dict[str, Any] = {"delta_l1": LAMBDA, "max_steps": 3}
Train = Callable[[Path], None]


def check_added(recording: Recording, base: Any, tolerance: float = 1e-4) -> None:
    """The penalty was added once to each step, exactly; from the second step on it is not 0."""
    assert [step.number for step in recording.steps] == [0, 1, 2]
    for step in recording.steps:
        of_penalty = gradients_of_penalty(base, step, l1(LAMBDA))
        error = error_of_added(step, of_penalty)
        print(f"step {step.number}: {len(step.batches)} batches, relative error of the penalty {error:.1e}")
        assert error < tolerance
        assert step.number == 0 or size(of_penalty) > 0.01 * size(step.before) / step.loss_scale


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_dpo(workspace: Workspace, axolotl_train: Train, recording: Recording, base64: Any, accumulation: int) -> None:
    axolotl_train(workspace.config(dpo=True, **KEYS, gradient_accumulation_steps=accumulation))
    assert [len(step.batches) for step in recording.steps] == [accumulation] * 3
    check_added(recording, base64)
    assert workspace.manifest()["penalty"]["steps_penalised"] == 3
    assert workspace.manifest()["training"]["kind"] == "dpo"
    assert "l1_norm" in recording.logs[0]


def test_orpo(workspace: Workspace, axolotl_train: Train, recording: Recording, base64: Any) -> None:
    rows = [
        {
            "prompt": row["prompt"],
            "chosen": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["rejected"]}],
        }
        for row in preference_rows(16)
    ]
    write_jsonl(Path("orpo.jsonl"), rows)
    orpo = {
        "rl": "orpo",
        "orpo_alpha": 0.1,
        "chat_template": "chatml",
        "remove_unused_columns": False,
        "datasets": [{"path": "orpo.jsonl", "type": "chat_template.argilla"}],
    }
    axolotl_train(workspace.config(**KEYS, **orpo, gradient_accumulation_steps=2))
    check_added(recording, base64)
    assert workspace.manifest()["training"]["kind"] == "orpo"


def test_kto(workspace: Workspace, axolotl_train: Train, recording: Recording, base64: Any) -> None:
    rows = [
        {"prompt": row["prompt"], "completion": row[kind], "label": kind == "chosen"}
        for row in preference_rows(16)
        for kind in ("chosen", "rejected")
    ]
    write_jsonl(Path("kto.jsonl"), rows)
    fields = {"field_prompt": "prompt", "field_completion": "completion", "field_label": "label"}
    kto = {
        "rl": "kto",
        "rl_beta": 0.1,
        "remove_unused_columns": False,
        "datasets": [
            {"path": "kto.jsonl", "type": {**fields, "prompt_format": "{prompt}", "completion_format": " {completion}"}}
        ],
    }
    axolotl_train(workspace.config(**KEYS, **kto, gradient_accumulation_steps=2))
    check_added(recording, base64)
    assert workspace.manifest()["training"]["kind"] == "kto"


def test_packed_rows(workspace: Workspace, axolotl_train: Train, recording: Recording, base64: Any) -> None:
    """The whole gradient: each document of a packed row is one of its own in the reference."""
    write_jsonl(Path("sft.jsonl"), sft_rows(60))
    packing = {"sample_packing": True, "pad_to_sequence_len": True, "attn_implementation": "sdpa", "sequence_len": 512}
    axolotl_train(workspace.config(**KEYS, **packing, micro_batch_size=1, gradient_accumulation_steps=2))
    check_added(recording, base64)
    for step in recording.steps:
        assert all((batch["position_ids"] == 0).sum() > 2 for batch in step.batches), "several documents in a row"
        of_loss, _ = gradients_of_loss(base64, step, over_all_tokens=OVER_ALL_TOKENS)
        of_penalty = gradients_of_penalty(base64, step, l1(LAMBDA))
        error = error_of_gradient(step, of_loss, of_penalty)
        print(f"step {step.number}: relative error {error:.1e}")
        assert error < 1e-5


@pytest.fixture
def bf16_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers refuses bf16 without a GPU that has it; torch's CPU has it."""
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)


@pytest.mark.usefixtures("bf16_anywhere")
def test_bf16_lora(workspace: Workspace, axolotl_train: Train, recording: Recording, base64: Any) -> None:
    """Frozen weights and activations are bf16, the factors and their gradients fp32."""
    axolotl_train(workspace.config(**KEYS, bf16=True))
    assert {str(p.dtype) for p in recording.model.parameters()} == {"torch.bfloat16", "torch.float32"}
    assert all(grad.dtype == torch.float32 for grad in recording.steps[-1].gradient.values())
    check_added(recording, base64)


@pytest.mark.usefixtures("bf16_anywhere")
def test_bf16_without_an_adapter(workspace: Workspace, axolotl_train: Train, recording: Recording, base64: Any) -> None:
    """Most weights and gradients are bf16: the sum with the penalty is rounded once, so half a unit is all it is off.

    The delta is from the weights as they were loaded, so from rounded ones.
    """
    axolotl_train(workspace.config(**KEYS, bf16=True, adapter=None))
    loaded = copy.deepcopy(base64).bfloat16().double()
    assert [len(step.batches) for step in recording.steps] == [1, 1, 1]
    assert sum(grad.dtype == torch.bfloat16 for grad in recording.steps[-1].gradient.values()) == 35
    for step in recording.steps:
        of_penalty = gradients_of_penalty(loaded, step, l1(LAMBDA))
        assert bool(size(of_penalty)) == (step.number > 0)
        for name, grad in step.gradient.items():
            before, added = step.before[name].double(), of_penalty[name]
            half_unit = torch.finfo(grad.dtype).eps / 2
            room = half_unit * (before + added).abs() + 2**-22 * (before.abs() + added.abs())
            assert ((grad.double() - before - added).abs() <= room).all()


def check_fp16(recording: Recording, base: Any) -> None:
    """The penalty carries the very scale of its step; what the optimizer gets has none."""
    taken = [step for step in recording.steps if step.clipped]
    assert len(taken) >= 3
    assert min(step.loss_scale for step in taken) > 1
    for step in taken:
        of_penalty = gradients_of_penalty(base, step, l1(LAMBDA))
        error = error_of_added(step, of_penalty)
        print(f"step {step.number}: loss scale {step.loss_scale}, relative error of the penalty {error:.1e}")
        assert error < 1e-4
        factor = 0.1 / (size(step.gradient) / step.loss_scale + 1e-6)
        clipped = {name: grad.double() / step.loss_scale * factor for name, grad in step.gradient.items()}
        assert distance(step.clipped, clipped) < 1e-5


def test_fp16_with_torch_s_own_scaler(
    workspace: Workspace,
    axolotl_train: Train,
    recording: Recording,
    base64: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Accelerate builds no scaler on a CPU, but torch has one: put where Accelerate puts a GPU's."""
    from accelerate import Accelerator

    build = Accelerator.__init__

    def with_scaler(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        assert self.mixed_precision == "fp16"
        assert self.scaler is None
        self.scaler, self.native_amp = torch.amp.GradScaler("cpu", growth_interval=2), True

    monkeypatch.setattr(Accelerator, "__init__", with_scaler)
    axolotl_train(workspace.config(**{**KEYS, "max_steps": 5}, fp16=True, max_grad_norm=0.1))
    check_fp16(recording, base64)
    assert len({step.loss_scale for step in recording.steps}) > 1, "it grows, or shrinks where gradients overflow"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_fp16_on_a_gpu(workspace: Workspace, axolotl_train: Train, recording: Recording, base64: Any) -> None:
    axolotl_train(workspace.config(**{**KEYS, "max_steps": 5}, fp16=True, max_grad_norm=0.1))
    check_fp16(recording, base64)
