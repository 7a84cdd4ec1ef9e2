"""DARE: drop at random and rescale (Yu et al. 2023, section 3.1), then add or elect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from untax.merge.masks import keep_mask
from untax.merge.method import Block, Job, Method, Parameter
from untax.merge.methods.consensus import elect
from untax.merge.methods.linear import TASK_PARAMETERS, summed

if TYPE_CHECKING:
    import torch


def _norm_ratios(job: Job) -> list[float]:
    """||delta||_1 / ||masked delta||_1 for each model, as mergekit rescales; 1 where either is next to nothing."""
    ratios = []
    for model, density in enumerate(job.values["density"]):
        before = after = 0.0
        if density < 1 and job.values["rescale"] and job.deltas.has(model):
            for rows in job.deltas.blocks():
                block = job.deltas.rows(model, rows)
                mask = keep_mask(job.seed, job.deltas.tensor, model, job.deltas.shape, rows, density)
                before += float(block.abs_().double().sum())
                after += float(block.mul_(mask).double().sum())
        ratios.append(before / after if min(before, after) >= 1e-7 else 1.0)
    return ratios


def _drop(block: Block, factors: list[float]) -> None:
    for model, density in enumerate(block.values["density"]):
        if density < 1:
            mask = keep_mask(block.seed, block.tensor, model, block.shape, block.rows, density)
            block.deltas[model].mul_(mask.to(block.deltas.device))
            if factors[model] != 1:
                block.deltas[model].mul_(factors[model])


def _add(block: Block) -> torch.Tensor:
    coefficients = block.deltas.new_tensor(summed(block.values)[0])
    return (coefficients @ block.deltas.flatten(1)).view_as(block.deltas[0])


def _merge_linear(block: Block) -> torch.Tensor:
    _drop(block, block.statistics)
    return _add(block)


def _merge_ties(block: Block) -> torch.Tensor:
    _drop(block, block.statistics)
    merged = elect(block.deltas, block.values["weight"], normalize=block.values["normalize"])
    return merged.mul_(block.values["lambda"])


def _merge_exact(block: Block) -> torch.Tensor:
    _drop(block, [1 / density for density in block.values["density"]])
    return _add(block)


_PARAMETERS = (*TASK_PARAMETERS, Parameter("normalize", bool, default=False))
_URL = "https://arxiv.org/abs/2311.03099"
_RESCALED = (*_PARAMETERS, Parameter("rescale", bool, default=True))

dare_linear = Method("dare_linear", _RESCALED, _merge_linear, statistics=_norm_ratios, url=_URL)
dare_ties = Method("dare_ties", _RESCALED, _merge_ties, statistics=_norm_ratios, url=_URL)
dare_exact = Method("dare_exact", _PARAMETERS, _merge_exact, url=_URL)
"""The paper's: what stays is divided by its probability, so that the expectation of each element is kept."""
