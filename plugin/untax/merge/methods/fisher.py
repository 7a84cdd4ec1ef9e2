"""Fisher merging: each element of the mean weighted by how much each model's likelihood depends on it.

With a Gaussian around each model's weights whose precision is the diagonal of its Fisher information, the weights that
all models together find likeliest are theta = sum_k w_k F_k theta_k / sum_k w_k F_k, element by element (Matena and
Raffel 2022, section 3); of deltas of one base likewise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from untax.adapters.statistics import Diagonal
from untax.errors import UntaxError
from untax.merge.method import Block, Job, Method, Parameter
from untax.merge.methods.statistic_files import check_owners, have, open_all

if TYPE_CHECKING:
    import torch


def check(jobs: Sequence[Job]) -> None:
    """Make sure, before anything is merged, that the files fit.

    Raises:
        UntaxError: a file cannot be read, is given for two models, was made from another adapter than its model's, or
            lacks a tensor that another has, or has it in another shape; no tensor of the merge has a Fisher;
            or the weights are below zero, or all zero.
    """
    check_owners(Diagonal, jobs, "fisher")
    found = False
    for job in jobs:
        _check_weights(job.values["weight"])
        found |= _has_fisher(open_all(Diagonal, job.values["fisher"]), job.deltas.tensor, job.deltas.shape)
    if jobs and not found:
        raise UntaxError(
            f"None of the {len(jobs)} tensors that the models change has a Fisher, {jobs[0].deltas.tensor} for one.",
            where=jobs[0].values["fisher"][0],
            fix="Make the files from these very models: untax fisher BASE+ADAPTER.",
        )


def _check_weights(weights: Sequence[float]) -> None:
    if min(weights) < 0 or not 0 < math.fsum(weights) < math.inf:
        raise UntaxError(
            f"The weights {', '.join(format(weight, 'g') for weight in weights)} are no weights of a mean.",
            where="parameters: weight",
            fix="Give numbers that are not below zero, one of them above.",
        )


def _has_fisher(files: Sequence[Diagonal], name: str, shape: tuple[int, int]) -> bool:
    if not have(files, name, lambda file: name in file.tensors):
        return False
    for file in files:
        own = file.tensors[name].shape
        rows = own[0] if own else 1
        if (rows, file.tensors[name].elements // max(1, rows)) != shape:
            raise UntaxError(
                f"The Fisher of {name} has the shape {list(own)}, but the weight has {shape[0]} rows of {shape[1]}.",
                where=file.path,
                fix="Use the file that was made from a model of this very base.",
            )
    return True


def _merge(block: Block) -> torch.Tensor:
    """In float64, where the products of tiny numbers are still numbers."""
    import torch

    deltas = block.deltas.double()
    weights = deltas.new_tensor(block.values["weight"])
    merged = torch.einsum("k,knc->nc", weights / weights.sum(), deltas)
    files = open_all(Diagonal, block.values["fisher"])
    if _has_fisher(files, block.tensor, block.shape):
        precision = torch.stack([_rows(file, block) for file in files]).to(deltas.device)
        precision *= weights[:, None, None]
        total = precision.sum(dim=0)
        # Where no model's likelihood depends on the element, the plain mean stays.
        merged = torch.where(total > 0, (precision * deltas).sum(dim=0) / total, merged)
    return merged.mul_(block.values["lambda"]).float()


def _rows(file: Diagonal, block: Block) -> torch.Tensor:
    import torch

    values = file.rows(block.tensor, block.rows).double().reshape(-1, block.shape[1])
    if not bool(((values >= 0) & torch.isfinite(values)).all()):
        raise UntaxError(
            f"The Fisher of {block.tensor} holds NaN, infinity, or a value below zero.",
            where=file.path,
            fix="Make the file again: untax fisher.",
        )
    return values


fisher = Method(
    "fisher",
    (
        Parameter("fisher", str, per_model=True),
        Parameter("weight", float, per_model=True, default=1.0),
        Parameter("lambda", float, default=1.0),
    ),
    merge=_merge,
    check=check,
    url="https://arxiv.org/abs/2111.09832",
)
