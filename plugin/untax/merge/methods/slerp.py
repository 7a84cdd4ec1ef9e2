"""Spherical interpolation of two models, and of two deltas."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from untax.merge.method import Block, Job, Method, Parameter

if TYPE_CHECKING:
    import torch

_NEARLY_PARALLEL = 0.9995
_SMALL = 1e-8


def _full_weights(job: Job) -> tuple[float, float]:
    """The factors of the two models in mergekit's slerp: of the whole weights, not of the deltas."""
    aa = bb = ab = 0.0
    for rows in job.deltas.blocks():
        assert job.base is not None
        base = job.base(rows)
        x, y = (job.deltas.rows(model, rows).add_(base).flatten().double() for model in range(2))
        aa, bb, ab = aa + float(x @ x), bb + float(y @ y), ab + float(x @ y)
    norms = [math.sqrt(square) if math.sqrt(square) > _SMALL else 1.0 for square in (aa, bb)]
    cosine = max(-1.0, min(1.0, ab / (norms[0] * norms[1])))
    return _factors(job.values["t"], cosine, parallel=abs(cosine) > _NEARLY_PARALLEL)


def _factors(t: float, cosine: float, *, parallel: bool) -> tuple[float, float]:
    if parallel:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _merge_weights(block: Block) -> torch.Tensor:
    """a (W + D_0) + b (W + D_1) - W, with W taken together."""
    a, b = block.statistics
    assert block.base is not None
    merged = block.deltas[0].mul_(a).add_(block.deltas[1], alpha=b)
    return merged.add_(block.base, alpha=a + b - 1)


slerp = Method(
    "slerp",
    (Parameter("t", float),),
    merge=_merge_weights,
    statistics=_full_weights,
    models=2,
    base_is_model=True,
    needs_base=True,
    url="https://en.wikipedia.org/wiki/Slerp",
)
