"""The gradient that the optimizer sees, through Axolotl's real trainer, against autograd in float64.

The reference shares nothing with PEFT, the trainer or the penalty: the base model in float64 with W + s*B@A put in the
place of every adapted weight, cross-entropy and ||s*B@A||_1 written out, and torch.autograd.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import functional_call

BASE = Path(__file__).resolve().parents[2] / "plugin" / "untax" / "demo" / "base"
LAMBDA = 0.01
# How Axolotl averages the loss over micro-batches: each alike in 0.19, each token alike in 0.21.
OVER_ALL_TOKENS = tuple(map(int, metadata.version("axolotl").split(".")[:2])) >= (0, 20)


@dataclasses.dataclass
class Step:
    """One optimizer step as the trainer took it."""

    weights: dict[str, torch.Tensor]
    batches: list[dict[str, torch.Tensor]]
    gradient: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    clipped: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Recording:
    steps: list[Step] = dataclasses.field(default_factory=list)
    logs: list[dict[str, float]] = dataclasses.field(default_factory=list)
    scales: dict[str, float] = dataclasses.field(default_factory=dict)


def trainable(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Recording:
    """Record weights and batches before, and gradients before and after clipping, of every optimizer step."""
    from transformers import Trainer

    record = Recording()
    inner_step, clip, norm, log = Trainer.training_step, Trainer._clip_grad_norm, Trainer._get_grad_norm, Trainer.log

    def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not record.steps or record.steps[-1].gradient:
            record.steps.append(Step(trainable(self.model), []))
        kept = ("input_ids", "attention_mask", "labels")
        record.steps[-1].batches.append({key: inputs[key].clone() for key in kept if key in inputs})
        return inner_step(self, model, inputs, *args, **kwargs)

    def before_clipping(self: Any, model: Any) -> Any:
        record.steps[-1].gradient = gradients(self.model)
        return clip(self, model)

    def before_optimizer(self: Any, model: Any, grad_norm: Any = None) -> Any:
        record.steps[-1].clipped = gradients(self.model)
        record.steps[-1].gradient = record.steps[-1].gradient or record.steps[-1].clipped
        record.scales = {
            f"{name}.lora_A.default.weight": module.scaling["default"]
            for name, module in self.model.named_modules()
            if isinstance(getattr(module, "scaling", None), dict)
        }
        return norm(self, model, grad_norm)

    def logged(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
        record.logs.append(dict(logs))
        return log(self, logs, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", training_step)
    monkeypatch.setattr(Trainer, "_clip_grad_norm", before_clipping)
    monkeypatch.setattr(Trainer, "_get_grad_norm", before_optimizer)
    monkeypatch.setattr(Trainer, "log", logged)
    return record


@pytest.fixture(scope="module")
def base64() -> Any:
    """The base model in float64, also where transformers would compute in float32."""
    from transformers import AutoModelForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float64, attn_implementation="sdpa").eval()
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = functools.partial(rms_norm, module)
    return model


def rms_norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    return module.weight * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + module.variance_epsilon)


def deltas(weights: dict[str, torch.Tensor], scale: Callable[[str], float]) -> dict[str, torch.Tensor]:
    """{base weight's name: s * B @ A}."""
    return {
        name.removeprefix("base_model.model.").replace(".lora_A.default", ""): scale(name)
        * weights[name.replace("lora_A", "lora_B")]
        @ weights[name]
        for name in weights
        if ".lora_A." in name
    }


def cross_entropy(model: Any, weights: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> tuple[Any, int]:
    """Summed negative log-likelihood of the labelled tokens, and how many."""
    logits = functional_call(
        model,
        weights,
        args=(batch["input_ids"],),
        kwargs={"attention_mask": batch["attention_mask"], "use_cache": False},
    ).logits
    logp = torch.log_softmax(logits[:, :-1], dim=-1)
    labels = batch["labels"][:, 1:]
    mask = labels != -100
    picked = logp.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -(picked * mask).sum(), int(mask.sum())


def reference(
    base: Any, step: Step, scale: Callable[[str], float], *, over_all_tokens: bool
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], float]:
    """Float64 gradients of the loss and of ||s*B@A||_1, and the loss."""
    leaves = {name: tensor.double().requires_grad_() for name, tensor in step.weights.items()}
    change = deltas(leaves, scale)
    own = dict(base.named_parameters())
    weights = {name: own[name].detach() + delta for name, delta in change.items()}
    sums = [cross_entropy(base, weights, batch) for batch in step.batches]
    if over_all_tokens:
        loss = sum(nll for nll, _ in sums) / sum(count for _, count in sums)
    else:
        loss = sum(nll / count for nll, count in sums) / len(sums)
    norm = sum(delta.abs().sum() for delta in change.values())
    names = list(leaves)
    of_loss = torch.autograd.grad(loss, [leaves[name] for name in names], retain_graph=True)
    of_norm = torch.autograd.grad(norm, [leaves[name] for name in names])
    return dict(zip(names, of_loss, strict=True)), dict(zip(names, of_norm, strict=True)), loss.item()


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """||found - expected|| / ||expected|| over all parameters."""
    assert found.keys() == expected.keys()
    error = sum(((found[name].double() - expected[name]) ** 2).sum() for name in expected)
    size = sum((expected[name] ** 2).sum() for name in expected)
    return float((error / size) ** 0.5)


def combined(of_loss: dict[str, torch.Tensor], of_norm: dict[str, torch.Tensor], weight: float) -> dict[str, Any]:
    return {name: of_loss[name] + weight * of_norm[name] for name in of_loss}


def check_steps(
    recording: Recording, base: Any, scale: Callable[[str], float], *, over_all_tokens: bool = OVER_ALL_TOKENS
) -> None:
    for index, step in enumerate(recording.steps):
        of_loss, of_norm, loss = reference(base, step, scale, over_all_tokens=over_all_tokens)
        error = distance(step.gradient, combined(of_loss, of_norm, LAMBDA))
        print(f"step {index}: {len(step.batches)} batches, relative error {error:.1e}")
        assert error < 1e-5
        if index == 0:
            assert all(not grad.any() for grad in of_norm.values()), "B = 0: the subgradient is 0"
        else:
            penalty = {name: step.gradient[name].double() - of_loss[name] for name in of_loss}
            alone = distance(penalty, {name: LAMBDA * grad for name, grad in of_norm.items()})
            print(f"        of the penalty alone {alone:.1e}; ||penalty|| / ||loss|| {ratio(of_norm, of_loss):.2f}")
            assert alone < 1e-4
        entry = recording.logs[index]
        assert entry["loss"] == pytest.approx(loss, rel=1e-5), "the logged loss is the pure cross-entropy"
        if index + 1 < len(recording.steps):  # logged after the step, so with the next step's weights
            after = deltas({n: w.double() for n, w in recording.steps[index + 1].weights.items()}, scale)
            total = sum(delta.abs().sum().item() for delta in after.values())
            small = [(delta.abs() < 1e-5).double().mean().item() for delta in after.values()]
            assert entry["l1_norm"] == pytest.approx(total, rel=1e-5)
            assert entry["sparsity"] == pytest.approx(sum(small) / len(small), abs=1e-4)


def ratio(of_norm: dict[str, torch.Tensor], of_loss: dict[str, torch.Tensor]) -> float:
    sizes = [sum((grad**2).sum() for grad in grads.values()) ** 0.5 for grads in (of_norm, of_loss)]
    return float(LAMBDA * sizes[0] / sizes[1])


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("max_grad_norm", [0.0, 0.1])
def test_gradient_is_that_of_loss_plus_penalty(
    workspace: Any,
    axolotl_train: Callable[[Path], None],
    recording: Recording,
    base64: Any,
    accumulation: int,
    max_grad_norm: float,
) -> None:
    axolotl_train(
        workspace.config(
            delta_l1=LAMBDA,
            delta_log_steps=1,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=max_grad_norm,
            max_steps=3,
        )
    )
    assert [len(step.batches) for step in recording.steps] == [accumulation] * 3
    check_steps(recording, base64, lambda name: 2.0)
    for step in recording.steps:
        length = sum((grad.double() ** 2).sum() for grad in step.gradient.values()) ** 0.5
        factor = min(1.0, max_grad_norm / float(length + 1e-6)) if max_grad_norm else 1.0
        assert distance(step.clipped, {name: grad.double() * factor for name, grad in step.gradient.items()}) < 1e-5
        assert factor < 1 or not max_grad_norm, "clipping was at work on loss and penalty together"
    section = workspace.manifest()["penalty"]
    assert section["l1"] == LAMBDA
    assert section["steps_penalised"] == workspace.manifest()["training"]["steps"] == 3
    assert section["steps_before"] == 0
    assert section["modules"] == 35


@pytest.mark.parametrize("accumulation", [1, 4])
def test_gradient_under_the_normalisation_of_later_axolotl(
    workspace: Any,
    axolotl_train: Callable[[Path], None],
    recording: Recording,
    base64: Any,
    monkeypatch: pytest.MonkeyPatch,
    accumulation: int,
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
    axolotl_train(
        workspace.config(delta_l1=LAMBDA, delta_log_steps=1, gradient_accumulation_steps=accumulation, max_steps=3)
    )
    check_steps(recording, base64, lambda name: 2.0, over_all_tokens=True)


def test_rslora_and_patterns_scale_each_layer_by_its_own_s(
    workspace: Any,
    axolotl_train: Callable[[Path], None],
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

    assert (
        recording.steps[0].weights["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"].shape[0]
        == 2
    )
    assert all(recording.scales[name] == pytest.approx(scale(name)) for name in recording.scales)
    check_steps(recording, base64, scale)


def test_lambda_zero_and_absent_leave_the_gradient_alone(
    workspace: Any, axolotl_train: Callable[[Path], None], recording: Recording, base64: Any
) -> None:
    axolotl_train(workspace.config(delta_l1=0.0))
    for step in recording.steps:
        of_loss, _, _ = reference(base64, step, lambda name: 2.0, over_all_tokens=False)
        assert distance(step.gradient, of_loss) < 1e-5
    assert "penalty" not in workspace.manifest()
    assert "l1_norm" not in recording.logs[0]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_dpo_gets_the_same_penalty(
    workspace: Any,
    axolotl_train: Callable[[Path], None],
    recording: Recording,
    monkeypatch: pytest.MonkeyPatch,
    accumulation: int,
) -> None:
    """What is added to the accumulated DPO gradient is lambda times float64 autograd of the norm."""
    from transformers import Trainer

    without: list[dict[str, torch.Tensor]] = []
    step_of_trainer = Trainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = step_of_trainer(self, *args, **kwargs)
        without.append(gradients(self.model))
        return loss

    monkeypatch.setattr(Trainer, "training_step", training_step)
    axolotl_train(
        workspace.config(
            dpo=True, delta_l1=LAMBDA, delta_log_steps=1, gradient_accumulation_steps=accumulation, max_steps=3
        )
    )
    assert len(recording.steps) == 3
    for step, before in zip(recording.steps[1:], without[2 * accumulation - 1 :: accumulation], strict=True):
        leaves = {name: tensor.double().requires_grad_() for name, tensor in step.weights.items()}
        norm = sum(delta.abs().sum() for delta in deltas(leaves, lambda name: 2.0).values())
        of_norm = dict(zip(leaves, torch.autograd.grad(norm, list(leaves.values())), strict=True))
        added = {name: step.gradient[name].double() - before[name].double() for name in before}
        error = distance(added, {name: LAMBDA * grad for name, grad in of_norm.items()})
        print(f"DPO: relative error of the penalty {error:.1e}")
        assert error < 1e-4
    assert workspace.manifest()["penalty"]["steps_penalised"] == 3
    assert workspace.manifest()["training"]["kind"] == "dpo"
    assert "l1_norm" in recording.logs[0]
