"""What the trainings of a preset need: memory and hours, by arithmetic from the YAMLs that it expands to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from untax.recipes.cost.disk import folder_disk
from untax.recipes.cost.hardware import GPUS, Gpu
from untax.recipes.cost.memory import training_memory
from untax.recipes.cost.time import training_hours
from untax.recipes.graph import Node, Plan
from untax.recipes.presets.preset import Preset

SHOWN_GPUS: tuple[Gpu, ...] = tuple(gpu for name in ("A100", "H100") for gpu in GPUS if gpu.name == name)


@dataclass(frozen=True)
class Estimate:
    """A training, or several that need the same.

    Attributes:
        names: of their nodes.
        rows: that one trains on in an epoch.
        tokens: that one trains on in all its epochs.
        memory: bytes at its peak, on one GPU.
        hours: of one, for each of ``SHOWN_GPUS``.
    """

    names: tuple[str, ...] = field(compare=False)
    rows: int
    tokens: int
    memory: int
    hours: tuple[float, ...]


@dataclass(frozen=True)
class Costs:
    """A preset's trainings, and its disk.

    Attributes:
        plan: what the preset expands to.
        estimates: of all trainings, like ones together.
        disk: bytes of all outputs.
    """

    plan: Plan
    estimates: tuple[Estimate, ...]
    disk: int

    @property
    def memory(self) -> int:
        """Bytes of the largest training."""
        return max(estimate.memory for estimate in self.estimates)

    @property
    def trainings(self) -> int:
        """How many there are."""
        return sum(len(estimate.names) for estimate in self.estimates)

    def hours(self, gpu: int) -> float:
        """GPU hours of all trainings, on ``SHOWN_GPUS[gpu]``."""
        return sum(estimate.hours[gpu] * len(estimate.names) for estimate in self.estimates)


def costs(preset: Preset, expanded: Plan) -> Costs:
    """What a preset needs.

    Method: memory and hours are ``untax.recipes.cost``'s, for one GPU; tokens are rows times their mean length, which
    the corpus says, times epochs. Padding is not counted, nor loading, dispersal, merging and scoring.

    Args:
        preset: the preset.
        expanded: what it expands to.
    """
    trainings = [
        (node, yaml.safe_load(expanded.files[str(node.config)])) for node in expanded.nodes if node.kind == "train"
    ]
    merges = [preset.content.get("dtype", "bfloat16") for node in expanded.nodes if node.kind == "merge"]
    each = [_estimate(preset, node, keys) for node, keys in trainings]
    prepared = sum(
        round(estimate.tokens / float(keys["num_epochs"])) for estimate, (_, keys) in zip(each, trainings, strict=True)
    )
    disk = folder_disk(preset.base.architecture, [keys for _, keys in trainings], merges, tokens=prepared)
    return Costs(expanded, _grouped(each), disk.total)


def _estimate(preset: Preset, node: Node, keys: dict[str, Any]) -> Estimate:
    rows, tokens, length = _data(preset, node, keys)
    architecture = preset.base.architecture
    trained_on = tokens * float(keys["num_epochs"])
    hours = tuple(training_hours(architecture, trained_on, keys, gpu, length=length) for gpu in SHOWN_GPUS)
    return Estimate((node.name,), rows, round(trained_on), training_memory(architecture, keys).total, hours)


def _data(preset: Preset, node: Node, keys: dict[str, Any]) -> tuple[int, float, float]:
    """Rows and tokens of an epoch, and tokens of a sequence."""
    pairs = preset.preference
    if keys.get("rl") and pairs is not None:
        length = min(pairs.tokens / 2, int(keys["sequence_len"]))
        return pairs.rows, pairs.rows * 2 * length, length
    rows, length = round(preset.sft.rows * node.share), min(preset.sft.tokens, int(keys["sequence_len"]))
    tokens = rows * length
    if preset.replay is not None and len(keys["datasets"]) > len(preset.sft.entries):
        # As many texts again, each cut to a whole row.
        tokens, rows = tokens + rows * float(keys["sequence_len"]), 2 * rows
    return rows, tokens, tokens / rows


def _grouped(estimates: Sequence[Estimate]) -> tuple[Estimate, ...]:
    names: dict[Estimate, tuple[str, ...]] = {}
    for estimate in estimates:
        names[estimate] = (*names.get(estimate, ()), *estimate.names)
    return tuple(Estimate(known, one.rows, one.tokens, one.memory, one.hours) for one, known in names.items())
