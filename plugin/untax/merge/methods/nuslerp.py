"""Spherical interpolation of two deltas over their base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from untax.merge.method import Block, Job, Method, Parameter, Values

if TYPE_CHECKING:
    import torch

_SMALL = 1e-7
_NEARLY_PARALLEL = 1e-16


def _position(values: Values) -> float:
    first, second = values["weight"]
    return 0.5 if abs(first + second) < 1e-6 else second / (first + second)


def _statistics(job: Job) -> Any:
    """The factors of the two deltas: two numbers, or a pair for each column; None when each row has its own."""
    import torch

    flat = job.values["nuslerp_flatten"] or job.deltas.shape[1] == 1
    if not flat and not job.values["nuslerp_row_wise"]:
        return None
    sums = torch.zeros(3, job.deltas.shape[1], dtype=torch.float64)
    for rows in job.deltas.blocks():
        a, b = (job.deltas.rows(model, rows).double() for model in range(2))
        sums += torch.stack([(x * y).sum(dim=0) for x, y in ((a, a), (b, b), (a, b))])
    if flat:
        sums = sums.sum(dim=1, keepdim=True)
    return _factors(_position(job.values), sums)


def _factors(t: float, sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of both deltas from (squared norm of either, inner product), each of shape (n)."""
    import torch

    norms = sums[:2].sqrt().clamp(min=_SMALL)
    cosine = (sums[2] / (norms[0] * norms[1])).clamp(-1, 1)
    parallel = (1 - cosine.square()) <= _NEARLY_PARALLEL
    angle = torch.acos(torch.where(parallel, 0.0, cosine))
    a, b = torch.sin((1 - t) * angle) / torch.sin(angle), torch.sin(t * angle) / torch.sin(angle)
    return torch.where(parallel, 1 - t, a).float(), torch.where(parallel, t, b).float()


def _merge(block: Block) -> torch.Tensor:
    factors = block.statistics
    if factors is None:
        x, y = block.deltas.double()
        sums = x.new_empty(3, len(x))
        sums[0], sums[1], sums[2] = (x * x).sum(1), (y * y).sum(1), (x * y).sum(1)
        factors = tuple(factor[:, None] for factor in _factors(_position(block.values), sums))
    a, b = (factor.to(block.deltas.device) for factor in factors)
    return block.deltas[0].mul_(a).add_(block.deltas[1].mul_(b))


nuslerp = Method(
    "nuslerp",
    (
        Parameter("weight", float, per_model=True),
        Parameter("nuslerp_row_wise", bool, default=False),
        Parameter("nuslerp_flatten", bool, default=True),
    ),
    merge=_merge,
    statistics=_statistics,
    models=2,
)
