"""TIES: trim, elect a sign, merge what agrees (Yadav et al. 2023, section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from untax.adapters.threshold import kth_largest
from untax.errors import UntaxError
from untax.merge.method import Block, Deltas, Job, Method, Parameter
from untax.merge.methods.consensus import elect
from untax.merge.methods.linear import TASK_PARAMETERS

if TYPE_CHECKING:
    import torch


def trim(delta: torch.Tensor, threshold: float) -> torch.Tensor:
    """The delta with zeros for all magnitudes below the threshold."""
    from torch.nn.functional import hardshrink

    # hardshrink keeps what is larger than its limit, so the limit is the next smaller number of fp32.
    return hardshrink(delta, _below(threshold)) if threshold > 0 else delta


def _below(threshold: float) -> float:
    import numpy

    return float(numpy.nextafter(numpy.float32(threshold), numpy.float32(0)))


def kept(density: float, count: int) -> int:
    """How many of ``count`` elements mergekit keeps."""
    return max(1, int(density * count))


def thresholds(job: Job) -> list[tuple[float, float]]:
    """(smallest magnitude that stays, what stays is multiplied by) for each model, by tensor as mergekit does."""
    found = []
    for model, density in enumerate(job.values["density"]):
        limit = _limit(job.deltas, model, density)
        found.append((limit, _rescale(job.deltas, model, limit) if job.values["rescale"] and limit > 0 else 1.0))
    return found


def _limit(deltas: Deltas, model: int, density: float) -> float:
    count = math.prod(deltas.shape)
    if density >= 1 or not deltas.has(model):
        return 0.0
    return kth_largest(lambda: present(deltas, model), count, kept(density, count))


def present(deltas: Deltas, model: int) -> Iterator[torch.Tensor]:
    """The blocks of one model's delta, where it has one."""
    if deltas.has(model):
        for rows in deltas.blocks():
            yield deltas.rows(model, rows)


def _rescale(deltas: Deltas, model: int, limit: float) -> float:
    """||delta||_1 / ||trimmed delta||_1, and 1 where either is next to nothing."""
    before = after = 0.0
    for block in present(deltas, model):
        before += float(block.abs().double().sum())
        after += float(trim(block, limit).abs().double().sum())
    return before / after if min(before, after) >= 1e-7 else 1.0


def _merge(block: Block) -> torch.Tensor:
    for delta, (limit, factor) in zip(block.deltas, block.statistics, strict=True):
        delta.copy_(trim(delta, limit))
        if factor != 1:
            delta.mul_(factor)
    merged = elect(block.deltas, block.values["weight"], normalize=block.values["normalize"])
    return merged.mul_(block.values["lambda"])


ties = Method(
    "ties",
    (*TASK_PARAMETERS, Parameter("normalize", bool, default=True), Parameter("rescale", bool, default=False)),
    merge=_merge,
    statistics=thresholds,
    url="https://arxiv.org/abs/2306.01708",
)


def global_thresholds(jobs: Iterator[Job]) -> list[float]:
    """For each model the magnitude that its largest ``density`` of all elements of all changed tensors reach.

    Raises:
        UntaxError: a density is not the same for all tensors.
    """
    every = list(jobs)
    for job in every:
        if job.values["density"] != every[0].values["density"]:
            raise UntaxError(
                f"The densities of {job.deltas.tensor} are others than those of {every[0].deltas.tensor}.",
                where="parameters: density",
                fix="Give each model one density for all tensors, or use ties.",
            )
    count = sum(math.prod(job.deltas.shape) for job in every)
    return [_global_limit(every, model, count) for model in range(every[0].deltas.models)] if every else []


def _global_limit(jobs: list[Job], model: int, count: int) -> float:
    density = jobs[0].values["density"][model]
    missing = sum(math.prod(job.deltas.shape) for job in jobs if not job.deltas.has(model))
    keep = kept(density, count)
    if density >= 1 or keep >= count - missing:
        return 0.0
    return kth_largest(lambda: _everything(jobs, model), count - missing, keep)


def _everything(jobs: list[Job], model: int) -> Iterator[torch.Tensor]:
    for job in jobs:
        yield from present(job.deltas, model)


def _merge_globally(block: Block) -> torch.Tensor:
    for delta, limit in zip(block.deltas, block.statistics, strict=True):
        delta.copy_(trim(delta, limit))
    merged = elect(block.deltas, [1.0] * len(block.deltas), normalize=True)
    return merged.mul_(block.values["lambda"])


def _of_whole(job: Job) -> Any:
    return job.whole


ties_global = Method(
    "ties_global",
    (Parameter("density", float, per_model=True, default=0.2), Parameter("lambda", float, default=1.0)),
    merge=_merge_globally,
    statistics=_of_whole,
    whole=global_thresholds,
    url="https://arxiv.org/abs/2306.01708",
)
