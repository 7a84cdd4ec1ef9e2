"""How much of a disk the outputs of a run folder take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from untax.recipes.cost.activations import FULL
from untax.recipes.cost.architecture import Architecture
from untax.recipes.cost.precision import state_bytes, width
from untax.recipes.cost.trained import trained

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
WITH_BASE = ("dpo", "ipo", "kto")
"""Preference trainings after which the whole base lies beside the adapter too."""

PREPARED_BYTES = 13
"""Of a token in a prepared dataset: its id in 4 bytes, its mask in 1 and its label in 8."""

DEFAULT_CHECKPOINTS = 4
"""What Axolotl keeps without ``save_total_limit``."""


@dataclass(frozen=True)
class Disk:
    """Bytes of a run folder.

    Attributes:
        results: adapters, and models that were trained whole.
        checkpoints: of the trainings, with the optimizer's states.
        base_copies: whole bases beside adapters of preference trainings.
        merged: merged models.
        prepared: tokenised data; 0 where its size is not known.
    """

    results: int = 0
    checkpoints: int = 0
    base_copies: int = 0
    merged: int = 0
    prepared: int = 0

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.results + self.checkpoints + self.base_copies + self.merged + self.prepared

    def __add__(self, other: Disk) -> Disk:
        return Disk(
            self.results + other.results,
            self.checkpoints + other.checkpoints,
            self.base_copies + other.base_copies,
            self.merged + other.merged,
            self.prepared + other.prepared,
        )


def training_disk(architecture: Architecture, keys: Mapping[str, Any], *, tokens: int = 0) -> Disk:
    """What one training leaves.

    Args:
        architecture: of the base.
        keys: Axolotl's.
        tokens: of its data, once through.

    Raises:
        UntaxError: ``lora_target_modules`` is a broken pattern.
    """
    what = trained(architecture, keys)
    each = width(keys) if what.full else FULL
    result = what.parameters(architecture) * each
    states = what.parameters(architecture) * state_bytes(keys, each)
    copy = architecture.parameters() * width(keys) if keys.get("rl") in WITH_BASE and not what.full else 0
    return Disk(
        results=result,
        checkpoints=_checkpoints(keys) * (result + states),
        base_copies=copy,
        prepared=tokens * PREPARED_BYTES,
    )


def merged_disk(architecture: Architecture, dtype: str = "bfloat16") -> Disk:
    """One merged model."""
    return Disk(merged=architecture.parameters() * DTYPE_BYTES.get(dtype, FULL))


def folder_disk(
    architecture: Architecture, trainings: Iterable[Mapping[str, Any]], merges: Iterable[str], *, tokens: int = 0
) -> Disk:
    """All that a run folder takes when it is finished.

    Args:
        architecture: of the base.
        trainings: the keys of each training.
        merges: the dtype of each merged model.
        tokens: of all prepared data.
    """
    parts = [training_disk(architecture, keys) for keys in trainings]
    parts += [merged_disk(architecture, dtype) for dtype in merges]
    return sum(parts, Disk(prepared=tokens * PREPARED_BYTES))


def _checkpoints(keys: Mapping[str, Any]) -> int:
    """How many lie there at the end: one for each epoch, or as the keys say, and no more than are kept."""
    if str(keys.get("save_strategy")).lower() in ("no", "false"):
        return 0
    kept = int(keys.get("save_total_limit") or DEFAULT_CHECKPOINTS)
    if keys.get("save_steps"):
        return kept
    epochs = float(keys.get("num_epochs") or 1)
    return min(kept, max(1, math.ceil(epochs * float(keys.get("saves_per_epoch") or 1))))
