"""How much disk the rest of a run takes, against what is free."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from untax.check.estimate import Estimate
from untax.check.findings import Finding
from untax.check.trainings import Training
from untax.errors import UntaxError
from untax.recipes.cost.architecture import Architecture
from untax.recipes.cost.disk import Disk, merged_disk, training_disk
from untax.recipes.graph import Plan
from untax.run.yamls import read_yaml


def rest_of_disk(
    plan: Plan,
    trainings: list[Training],
    estimates: list[Estimate],
    shapes: dict[str, Architecture | None],
    due: Collection[str],
    folder: Path,
    base: str,
) -> Disk | None:
    """Bytes that nodes still write; None without the base's shape.

    Args:
        plan: of the run folder.
        trainings: all of them.
        estimates: theirs.
        shapes: of each base.
        due: names of the nodes that would run.
        folder: the run folder.
        base: the recipe's.
    """
    found = Disk()
    for training, own in zip(trainings, estimates, strict=True):
        shape = shapes.get(training.base)
        if training.node.name not in due:
            continue
        if shape is None:
            return None
        found += training_disk(shape, training.keys, tokens=own.lengths.tokens if own.lengths else 0)
    whole = shapes.get(base)
    for node in plan.nodes:
        if node.kind != "merge" or node.name not in due:
            continue
        if whole is None:
            return None
        found += merged_disk(whole, _dtype(_keys(folder / str(node.config))))
    return found


def disk_findings(need: Disk, folder: Path) -> list[Finding]:
    """A failure where the rest of a run has no room."""
    free = shutil.disk_usage(folder).free
    if need.total <= free:
        return []
    text = f"about {need.total / 1e9:.1f} GB are still to be written, and {free / 1e9:.1f} GB are free"
    return [Finding("fail", str(folder), text, "Free some space, or lower save_total_limit.")]


def _keys(path: Path) -> dict[str, Any]:
    try:
        return read_yaml(path)
    except UntaxError:
        return {}  # said where the YAMLs are read


def _dtype(keys: dict[str, Any]) -> str:
    return str(keys.get("out_dtype") or keys.get("dtype") or "bfloat16")
