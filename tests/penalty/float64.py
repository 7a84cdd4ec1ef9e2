"""Float64 autograd of losses and penalties: nothing is shared with PEFT, the trainer or the penalty.

The base in float64 with W + s*B@A (or the trained weight itself) in the place of every trained weight, losses and
penalties written out, and torch.autograd.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch.func import functional_call

from .recording import Step, Tensors

Scale = Callable[[str], float]
Penalty = Callable[[Tensors, Tensors], torch.Tensor]
"""Of {base tensor: delta} and {trained tensor: value}, with a graph; lambda is in it."""

# How Axolotl averages the loss over micro-batches: each alike in 0.19, each token alike in 0.21.
OVER_ALL_TOKENS = tuple(map(int, metadata.version("axolotl").split(".")[:2])) >= (0, 20)


def load(path: Path) -> Any:
    """A Llama in float64, also where transformers would compute in float32."""
    from transformers import AutoModelForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="sdpa").eval()
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = functools.partial(_rms_norm, module)
    return model


def _rms_norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    return module.weight * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + module.variance_epsilon)


def twice(_: str) -> float:
    """s of ``lora_alpha: 8, lora_r: 4``."""
    return 2.0


def deltas(base: Any, weights: Tensors, scale: Scale = twice) -> Tensors:
    """{base tensor: s * B @ A, or theta - theta_pre}, in float64; of factors alone, without the base."""
    own = dict(base.named_parameters(remove_duplicate=False)) if base else {}
    found = {}
    for name, value in weights.items():
        target = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        if ".lora_A." in name:
            up = weights[name.replace("lora_A", "lora_B")]
            found[target.replace(".lora_A.default", "")] = scale(name) * up.double() @ value.double()
        elif ".lora_B." not in name:
            found[target] = value.double() - own[target].detach()
    return found


def l1(weight: float) -> Penalty:
    return lambda changes, _: weight * sum(delta.abs().sum() for delta in changes.values())


def l2(weight: float) -> Penalty:
    return lambda changes, _: weight / 2 * sum((delta**2).sum() for delta in changes.values())


def gradients_of_penalty(base: Any, step: Step, penalty: Penalty, scale: Scale = twice) -> Tensors:
    """Float64 autograd at the weights of a step; zeros for what the penalty does not touch."""
    leaves = {name: tensor.double().requires_grad_() for name, tensor in step.weights.items()}
    return _gradients(penalty(deltas(base, leaves, scale), leaves), leaves)


def gradients_of_loss(
    base: Any, step: Step, scale: Scale = twice, *, over_all_tokens: bool = OVER_ALL_TOKENS
) -> tuple[Tensors, float]:
    """Float64 autograd of the mean negative log-likelihood of a step's labelled tokens, and its value."""
    leaves = {name: tensor.double().requires_grad_() for name, tensor in step.weights.items()}
    own = dict(base.named_parameters(remove_duplicate=False))
    weights = {name: own[name].detach() + delta for name, delta in deltas(base, leaves, scale).items()}
    sums = [nll_of_labels(base, weights, batch) for batch in step.batches]
    if over_all_tokens:
        loss = sum(nll for nll, _ in sums) / sum(count for _, count in sums)
    else:
        loss = sum(nll / count for nll, count in sums) / len(sums)
    return _gradients(loss, leaves), loss.item()


def nll_of_labels(model: Any, weights: Tensors, batch: Tensors) -> tuple[torch.Tensor, int]:
    """Summed negative log-likelihood of the labelled tokens, and how many they are."""
    rows = [nll_of_sequence(model, weights, *sequence) for row in _rows(batch) for sequence in _documents(row)]
    return sum(nll for nll, _ in rows), sum(count for _, count in rows)


def nll_of_sequence(model: Any, weights: Tensors, ids: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Of one sequence alone, without padding; shapes (length,)."""
    # A trained copy of a tied weight is one of its own.
    tied = "lm_head.weight" not in weights
    options = {"use_cache": False}
    logits = functional_call(model, weights, args=(ids[None],), kwargs=options, tie_weights=tied).logits[0]
    logp = torch.log_softmax(logits[:-1], dim=-1)
    mask = labels[1:] != -100
    picked = logp.gather(-1, labels[1:].clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return -(picked * mask).sum(), int(mask.sum())


def _rows(batch: Tensors) -> list[Tensors]:
    return [{key: tensor[index] for key, tensor in batch.items()} for index in range(len(batch["input_ids"]))]


def _documents(row: Tensors) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, labels) of each: a row is one document, or packed, and then each begins at position 0."""
    ids, labels = row["input_ids"], row["labels"]
    if "position_ids" not in row:
        there = row["attention_mask"].bool()
        return [(ids[there], labels[there])]
    starts = (row["position_ids"] == 0).nonzero().flatten().tolist()
    ends = [*starts[1:], len(ids)]
    return [(ids[a:b], labels[a:b]) for a, b in zip(starts, ends, strict=True) if (labels[a + 1 : b] != -100).any()]


def _gradients(value: torch.Tensor, leaves: Tensors) -> Tensors:
    found = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def size(gradients: Tensors) -> float:
    """The length of all of them as one vector."""
    return float(sum((grad.double() ** 2).sum() for grad in gradients.values()) ** 0.5)


def distance(found: Tensors, expected: Tensors) -> float:
    """||found - expected|| / ||expected|| over all parameters."""
    assert found.keys() == expected.keys()
    return size({name: found[name].double() - expected[name].double() for name in expected}) / size(expected)


def error_of_gradient(step: Step, of_loss: Tensors, of_penalty: Tensors, scale: Scale = twice) -> float:
    """How far the gradient before clipping is from that of loss plus penalty, relatively."""
    sure = decided(step, scale)
    expected = {name: sure[name] * (of_loss[name] + of_penalty[name]) for name in of_loss}
    return distance({name: sure[name] * grad for name, grad in step.gradient.items()}, expected)


def error_of_added(step: Step, of_penalty: Tensors, factor: float = 1.0, scale: Scale = twice) -> float:
    """How far what was added to a step's gradient is from a penalty's, relatively; where that is 0, nothing may be.

    Args:
        step: as recorded.
        of_penalty: its float64 gradient.
        factor: that of the schedule.
        scale: s of each layer.
    """
    added = step.added()
    if not size(of_penalty):
        assert not any(grad.any() for grad in added.values())
        return 0.0
    sure = decided(step, scale)
    expected = {name: sure[name] * step.loss_scale * factor * grad for name, grad in of_penalty.items()}
    return distance({name: sure[name] * grad for name, grad in added.items()}, expected)


def decided(step: Step, scale: Scale = twice) -> Tensors:
    """Which elements of the factors' gradients depend on no delta whose sign single precision cannot tell.

    Such a delta is 0 up to rounding, and any number from -1 to 1 its subgradient; one in some millions is.
    """
    leaves = {name: value.double().requires_grad_() for name, value in step.weights.items() if ".lora_" in name}
    sizes = deltas(None, {name: value.detach().abs() for name, value in leaves.items()}, scale)
    found = deltas(None, leaves, scale)
    unsure = [delta * (delta.detach().abs() < 1e-6 * sizes[name]) for name, delta in found.items()]
    touched = _gradients(sum(delta.sum() for delta in unsure), leaves) if leaves else {}
    everything = {name: torch.ones_like(value, dtype=torch.bool) for name, value in step.weights.items()}
    sure = {**everything, **{name: grad == 0 for name, grad in touched.items()}}
    assert sum(int(kept.sum()) for kept in sure.values()) > 0.95 * sum(kept.numel() for kept in sure.values())
    return sure
