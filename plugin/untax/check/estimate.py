"""What each training costs: steps, memory and hours, from its YAML and the lengths of its rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from untax.check.findings import Finding
from untax.check.gpus import VisibleGpu
from untax.check.lengths import Lengths
from untax.check.trainings import Training
from untax.errors import UntaxError
from untax.recipes.checks import is_local
from untax.recipes.cost.architecture import Architecture
from untax.recipes.cost.hardware import DEFAULT_GPU, gpu_named
from untax.recipes.cost.known import find_architecture
from untax.recipes.cost.memory import Memory, training_memory
from untax.recipes.cost.time import training_hours, training_steps, warmup_steps
from untax.recipes.presets.bases import BASES

PACKED = 0.95
"""The share of a packed row that is tokens; ours."""


@dataclass(frozen=True)
class Estimate:
    """What one training takes; None for what cannot be known.

    Attributes:
        name: of its node.
        lengths: of its rows.
        steps: of the optimizer.
        warmup: steps for which the learning rate rises.
        tokens: in all epochs, as they are computed.
        memory: at the peak of one GPU.
        hours: by the name of a GPU.
        gpus: how many it runs on.
    """

    name: str
    lengths: Lengths | None = None
    steps: int | None = None
    warmup: int | None = None
    tokens: int | None = None
    memory: Memory | None = None
    hours: dict[str, float] | None = None
    gpus: int = 1


def estimate(
    training: Training, lengths: Lengths | None, shape: Architecture | None, visible: list[VisibleGpu], device: str
) -> tuple[Estimate, list[Finding]]:
    """What a training takes, and what of that will not do.

    Args:
        training: the training.
        lengths: of its rows, where they could be looked at.
        shape: of its base, where it is known.
        visible: the GPUs that are there.
        device: ``cuda`` or ``cpu``.
    """
    gpus = training.node.gpus if device == "cuda" else 1
    steps, tokens = _steps(training, lengths, gpus)
    warmup = None if steps is None else warmup_steps(steps, training.keys)
    findings = _warmup(training, steps, warmup)
    memory, hours = None, None
    if shape is not None:
        try:
            longest = None if lengths is None or training.keys.get("pad_to_sequence_len") else lengths.longest
            memory = training_memory(shape, training.keys, device, length=longest)
            if tokens is not None and lengths is not None and device == "cuda":
                chosen = {found.name: found for gpu in visible if (found := gpu_named(gpu.name))}
                hours = {
                    name: training_hours(shape, tokens, training.keys, gpu, length=lengths.mean, gpus=gpus)
                    for name, gpu in (chosen or {DEFAULT_GPU.name: DEFAULT_GPU}).items()
                }
        except UntaxError as error:
            findings.append(Finding("unknown", training.config, error.problem, error.fix or ""))
        findings += _memory(training, memory, visible)
    return Estimate(training.node.name, lengths, steps, warmup, tokens, memory, hours, gpus), findings


def shape_of(base: str, folder: Path) -> tuple[Architecture | None, list[Finding]]:
    """The shape of a base, and why it is not known."""
    try:
        shape = find_architecture(base, folder)
    except UntaxError as error:
        return None, [Finding("unknown", error.where or base, error.problem, error.fix or "")]
    shape = shape or next((known.architecture for known in BASES if known.path == base), None)
    if shape is None and is_local(base):
        return None, []  # said of its path
    if shape is None:
        text = f"memory and hours are not estimated: nothing of {base} is on this machine"
        return None, [Finding("unknown", base, text, f"hf download {base} config.json")]
    return shape, []


def _steps(training: Training, lengths: Lengths | None, gpus: int) -> tuple[int | None, int | None]:
    """Optimizer steps, and tokens of all of them."""
    if lengths is None:
        return None, None
    keys, rows = training.keys, lengths.kept
    held_out = keys.get("val_set_size") or 0
    if isinstance(held_out, int | float) and held_out > 0:
        rows = max(rows - (round(rows * held_out) if held_out < 1 else int(held_out)), 0)
    per_epoch = lengths.tokens * rows / max(lengths.kept, 1)
    packed = bool(keys.get("sample_packing")) and not keys.get("rl")
    sequences = math.ceil(per_epoch / (lengths.limit * PACKED)) if packed else rows
    steps = training_steps(sequences, keys, gpus=gpus)
    whole = training_steps(sequences, {**keys, "max_steps": None}, gpus=gpus)
    epochs = float(keys.get("num_epochs") or 1)
    return steps, round(per_epoch * epochs * steps / max(whole, 1))


def _warmup(training: Training, steps: int | None, warmup: int | None) -> list[Finding]:
    if steps == 0:
        fix = "Raise sequence_len, or give rows that fit into it."
        return [Finding("fail", training.config, "no row is left to train on", fix)]
    if not steps or not warmup or 2 * warmup < steps:
        return []
    text = f"the learning rate rises for {warmup} of about {steps} steps"
    return [Finding("note", f"{training.config}: warmup_steps, warmup_ratio", text, "Lower it, or train for longer.")]


def _memory(training: Training, memory: Memory | None, visible: list[VisibleGpu]) -> list[Finding]:
    if memory is None or not visible:
        return []
    largest = max(visible, key=lambda gpu: gpu.memory)
    # Sharding divides a part of it, which is not estimated.
    if memory.total <= largest.memory or training.keys.get("fsdp_config") or training.keys.get("deepspeed"):
        return []
    text = (
        f"about {memory.total / 1e9:.0f} GB of GPU memory are needed, and {largest.name} has {largest.memory / 1e9:.0f}"
    )
    fix = "Lower micro_batch_size or sequence_len, set gradient_checkpointing, or load the base in 4 bits (qlora)."
    return [Finding("note", training.config, text, fix)]
