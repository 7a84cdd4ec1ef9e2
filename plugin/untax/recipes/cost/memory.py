"""How much memory of a GPU a training takes at its peak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from untax.recipes.cost.activations import FULL, Step, kept, layer
from untax.recipes.cost.architecture import Architecture
from untax.recipes.cost.methods import Method, method
from untax.recipes.cost.precision import state_bytes, weight_bytes, width
from untax.recipes.cost.trained import Trained, trained

OVERHEAD = 1_500_000_000
"""CUDA's context, libraries' workspaces and what lies unused between blocks; ours, a round number."""

PENALTY_BLOCK = {"cuda": 64 << 20, "cpu": 1 << 20}
"""What ``delta_*`` keys work on at a time, and once more for F."""

FUSED_LOSSES = ("CutCrossEntropyPlugin", "LigerPlugin")
"""Plugins that compute the loss without all logits at once, if they are told to."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a training, part by part.

    Attributes:
        weights: the base as it is loaded.
        adapter: LoRA factors, and modules that are trained whole beside them; 0 in full fine-tuning.
        gradients: of all that is trained.
        optimizer: its states.
        reference: a second copy of the base, for DPO and KTO without an adapter.
        penalty: what ``delta_*`` keys need.
        activations: what all layers keep for the backward pass.
        logits: scores of the vocabulary for each token, with the loss's copies of them.
        backward: one layer's activations, computed again, and their gradients.
        overhead: what no formula gives.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    reference: int
    penalty: int
    activations: int
    logits: int
    backward: int
    overhead: int

    @property
    def total(self) -> int:
        """Bytes at the peak: logits are freed before the layers' backward begins, so only the larger of both counts."""
        always = sum(getattr(self, part.name) for part in fields(self) if part.name not in ("logits", "backward"))
        return always + max(self.logits, self.backward)

    @property
    def step(self) -> int:
        """What one forward and backward pass takes beyond weights, gradients and states."""
        return self.activations + max(self.logits, self.backward)

    def parts(self) -> dict[str, int]:
        """The parts by name, those that are 0 left out."""
        return {part.name: getattr(self, part.name) for part in fields(self) if getattr(self, part.name)}


def training_memory(
    architecture: Architecture, keys: Mapping[str, Any], device: str = "cuda", *, length: int | None = None
) -> Memory:
    """The memory that a training takes on one GPU (or of a CPU), at its longest rows.

    Args:
        architecture: of the base.
        keys: Axolotl's, as in its YAML.
        device: ``cuda`` or ``cpu``.
        length: tokens of the longest row, where known; else ``sequence_len``.

    Raises:
        UntaxError: ``lora_target_modules`` is a broken pattern.
    """
    what, how, bytes_of = trained(architecture, keys), method(keys), width(keys)
    step = _step(keys, how, device, length)
    count = what.parameters(architecture)
    # PEFT keeps factors in full precision; without an adapter the weights themselves are trained, as they are loaded.
    each = bytes_of if what.full else FULL
    penalised = any(str(key).startswith("delta_") and value for key, value in keys.items())
    return Memory(
        weights=weight_bytes(architecture, keys),
        adapter=0 if what.full else count * each,
        gradients=count * each,
        optimizer=count * state_bytes(keys, each),
        reference=weight_bytes(architecture, keys) if how.reference and what.full else 0,
        penalty=_penalty(keys, count * each, PENALTY_BLOCK[device], whole=what.full) if penalised else 0,
        activations=kept(architecture, what, step),
        logits=0 if _fused(keys) else _logits(architecture, step, how),
        backward=_backward(architecture, what, step),
        overhead=OVERHEAD if device == "cuda" else 0,
    )


def _step(keys: Mapping[str, Any], how: Method, device: str, length: int | None) -> Step:
    longest = int(keys.get("sequence_len") or 512)
    packed = bool(keys.get("sample_packing")) and not keys.get("rl")
    return Step(
        rows=int(keys.get("micro_batch_size") or 1) * how.answers,
        length=longest if packed or length is None else min(length, longest),
        width=width(keys),
        mask_width=1 if device == "cuda" else 4,
        attention=_attention(keys),
        checkpointing=bool(keys.get("gradient_checkpointing")),
    )


def _attention(keys: Mapping[str, Any]) -> str:
    named = str(keys.get("attn_implementation") or "")
    if keys.get("eager_attention") or named == "eager":
        return "eager"
    flash = keys.get("flash_attention") or keys.get("xformers_attention") or "flash" in named
    return "flash" if flash or keys.get("sample_packing") else "sdpa"


def _fused(keys: Mapping[str, Any]) -> bool:
    """Whether the loss is computed without all logits at once."""
    plugins = [str(plugin).rpartition(".")[2] for plugin in keys.get("plugins") or []]
    cut = "CutCrossEntropyPlugin" in plugins and keys.get("cut_cross_entropy") is not False
    liger = "LigerPlugin" in plugins and bool(keys.get("liger_fused_linear_cross_entropy"))
    return not keys.get("rl") and (cut or liger or bool(keys.get("chunked_cross_entropy")))


def _penalty(keys: Mapping[str, Any], trained_bytes: int, block: int, *, whole: bool) -> int:
    copy = trained_bytes if whole and keys.get("delta_base", "keep") == "keep" else 0
    return copy + block * (2 if keys.get("delta_ewc") else 1)


def _logits(architecture: Architecture, step: Step, how: Method) -> int:
    return step.tokens * architecture.vocabulary * how.logit_bytes


def _backward(architecture: Architecture, trained: Trained, step: Step) -> int:
    """One layer's activations, and gradients: two as wide as the MLP and two as the residual stream."""
    gradients = step.tokens * step.width * 2 * (architecture.intermediate + architecture.hidden)
    return gradients + (layer(architecture, trained, step) if step.checkpointing else 0)
