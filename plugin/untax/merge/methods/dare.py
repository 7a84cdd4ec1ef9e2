"""DARE: drop at random and rescale (Yu et al. 2023, section 3.1), then add or elect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from untax.merge.masks import KeepMask, keep_mask
from untax.merge.method import Block, Job, Method, Parameter
from untax.merge.methods.consensus import elect
from untax.merge.methods.linear import TASK_PARAMETERS, summed

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Dropped:
    """What stays of one model's delta, and what it is multiplied by."""

    mask: KeepMask
    factor: float


def _draw(job: Job, model: int) -> KeepMask | None:
    """None where everything stays."""
    density = job.values["density"][model]
    if density >= 1 or not job.deltas.has(model):
        return None
    return keep_mask(job.seed, job.deltas.tensor, model, job.deltas.shape, density)


def _rescaled_by_norm(job: Job) -> list[_Dropped | None]:
    """As mergekit rescales: by ||delta||_1 / ||masked delta||_1."""
    masks = [_draw(job, model) for model in range(job.deltas.models)]
    rescale = job.values["rescale"]
    return [
        None if mask is None else _Dropped(mask, _norm_ratio(job, model, mask) if rescale else 1.0)
        for model, mask in enumerate(masks)
    ]


def _norm_ratio(job: Job, model: int, mask: KeepMask) -> float:
    """1 where either norm is next to nothing."""
    before = after = 0.0
    for rows in job.deltas.blocks():
        magnitudes = job.deltas.rows(model, rows).abs_()
        before += float(magnitudes.sum())
        after += float(magnitudes.mul_(mask.rows(rows)).sum())
    return before / after if min(before, after) >= 1e-7 else 1.0


def _rescaled_by_density(job: Job) -> list[_Dropped | None]:
    """As the paper rescales: by 1 / density, so that the expectation of each element is kept."""
    masks = [_draw(job, model) for model in range(job.deltas.models)]
    densities = job.values["density"]
    return [None if mask is None else _Dropped(mask, 1 / densities[model]) for model, mask in enumerate(masks)]


def _drop(block: Block) -> None:
    for delta, dropped in zip(block.deltas, block.statistics, strict=True):
        if dropped is not None:
            delta.mul_(dropped.mask.rows(block.rows).to(delta.device))
            if dropped.factor != 1:
                delta.mul_(dropped.factor)


def _merge_linear(block: Block) -> torch.Tensor:
    _drop(block)
    coefficients = block.deltas.new_tensor(summed(block.values)[0])
    return (coefficients @ block.deltas.flatten(1)).view_as(block.deltas[0])


def _merge_ties(block: Block) -> torch.Tensor:
    _drop(block)
    merged = elect(block.deltas, block.values["weight"], normalize=block.values["normalize"])
    return merged.mul_(block.values["lambda"])


_PARAMETERS = (*TASK_PARAMETERS, Parameter("normalize", bool, default=False))
_URL = "https://arxiv.org/abs/2311.03099"
_RESCALED = (*_PARAMETERS, Parameter("rescale", bool, default=True))

dare_linear = Method("dare_linear", _RESCALED, _merge_linear, statistics=_rescaled_by_norm, url=_URL)
dare_ties = Method("dare_ties", _RESCALED, _merge_ties, statistics=_rescaled_by_norm, url=_URL)
dare_exact = Method("dare_exact", _PARAMETERS, _merge_linear, statistics=_rescaled_by_density, url=_URL)
