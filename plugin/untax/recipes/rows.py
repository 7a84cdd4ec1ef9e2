"""What the number of rows allows, where it is known: local JSON Lines files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from untax.errors import UntaxError
from untax.recipes.arms import Dtm
from untax.recipes.checks import below
from untax.recipes.spec import RunSpec
from untax.recipes.trainings import sft_keys

ENOUGH = 1_000_000
"""Rows after which counting stops: neither clusters nor warm-up steps are so many."""


def known_rows(spec: RunSpec, folder: Path) -> int | None:
    """The rows of the instruction data, or None unless all of it is in local ``.jsonl`` files."""
    paths = [entry["path"] for entry in spec.sft or []]
    files = [below(folder, path) for path in paths if path.endswith(".jsonl")]
    if len(files) < len(paths) or not all(os.path.isfile(file) and os.access(file, os.R_OK) for file in files):
        return None
    rows = 0
    for file in files:
        with file.open("rb") as lines:
            for line in lines:
                rows += bool(line.strip())
                if rows >= ENOUGH:
                    return rows
    return rows


def check_rows(spec: RunSpec, rows: int, *, where: object) -> None:
    """Every cluster can have a row.

    Raises:
        UntaxError: there are more clusters than rows.
    """
    for name, arm in spec.arms.items():
        if isinstance(arm, Dtm) and arm.clusters > rows:
            raise UntaxError(
                f"The recipe asks for {arm.clusters} clusters of {rows} rows: a cluster would be empty.",
                where=where,
                fix=f"Ask for at most {rows} clusters (-k, or arms.{name}.clusters), or add data.",
            )


def long_warmups(spec: RunSpec, rows: int) -> list[str]:
    """A sentence for each kind of SFT whose learning rate would rise for half of its steps or more."""
    keys = sft_keys(spec)
    warmup = _number(keys.get("warmup_steps"), 0)
    batch = _number(keys.get("micro_batch_size"), 1) * _number(keys.get("gradient_accumulation_steps"), 1)
    most = max((arm.clusters for arm in spec.arms.values() if isinstance(arm, Dtm)), default=0)
    shares = {"each cluster's training": most} if most else {}
    if any("sft" in arm.trains_on() and not isinstance(arm, Dtm) for arm in spec.arms.values()):
        shares["SFT on all rows"] = 1
    found = []
    for name, clusters in shares.items():
        steps = rows / clusters * _number(keys.get("num_epochs"), 1) / max(batch, 1)
        limit = _number(keys.get("max_steps"), 0)
        steps = min(steps, limit) if limit > 0 else steps
        if warmup and 2 * warmup >= steps:
            found.append(
                f"{name} has about {max(round(steps), 1)} steps, and warmup_steps is {warmup:g}: "
                "its learning rate would rise for most of them. Lower warmup_steps in training.sft of untax.yaml."
            )
    return found


def _number(value: Any, default: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default
