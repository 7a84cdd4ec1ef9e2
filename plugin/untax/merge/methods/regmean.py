"""RegMean: the weights whose outputs are nearest to those of all models (Jin et al. 2023, section 3.2).

A linear layer of model k has the weight W + D_k, shape (out, in), and reads the rows X_k of its training data. The
weight that minimises sum_k ||X_k (W + D)^T - X_k (W + D_k)^T||^2 is

    D = (sum_k D_k G_k) (sum_k G_k)^-1,    G_k = X_k^T X_k

since W, which all models have in common, drops out. `untax gram` writes G_k divided by the number of tokens, so each
model counts alike however much text there was.

The paper multiplies the elements off the diagonal of each G_k by alpha (``shrink``), because with alpha = 1 some merged
language models degenerate. Which value is best differs between models: the authors' released configurations have 0.1
for RoBERTa, T5 and DeBERTa on emotion classification, and none for RoBERTa and DistilBERT on GLUE. The default of 0.9
stays near the minimum above, and gives every sum of Grams an inverse in which each feature was ever active.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from untax.adapters.gram import Grams
from untax.errors import UntaxError
from untax.merge.method import Block, Deltas, Job, Method, Parameter
from untax.merge.methods.statistic_files import check_owners, have, open_all

if TYPE_CHECKING:
    import torch

ROWS = 1024
"""Rows of a delta at a time: large products are fast, and a Gram of 11,008 features is 1 GB in float64."""
_RIDGE = 1e-7


def check(jobs: Sequence[Job]) -> None:
    """Make sure, before anything is merged, that the Grams fit.

    Raises:
        UntaxError: a file cannot be read, is given for two models, was made from another adapter than its model's, or
            lacks a tensor that another has, or has it in another shape; no tensor of the merge has a Gram;
            or ``shrink`` is not between 0 and 1.
    """
    check_owners(Grams, jobs, "gram")
    found = False
    for job in jobs:
        if not 0 <= job.values["shrink"] <= 1:
            raise UntaxError(
                f"The elements off the diagonal cannot be multiplied by {job.values['shrink']:g}.",
                where="parameters: shrink",
                fix="Give a number between 0 and 1.",
            )
        found |= _has_grams(open_all(Grams, job.values["gram"]), job.deltas)
    if jobs and not found:
        raise UntaxError(
            f"None of the {len(jobs)} tensors that the models change has a Gram, {jobs[0].deltas.tensor} for one.",
            where=jobs[0].values["gram"][0],
            fix="Make the files from these very models: untax gram BASE+ADAPTER.",
        )


def _has_grams(files: tuple[Grams, ...], deltas: Deltas) -> bool:
    name = deltas.tensor
    if not have(files, name, lambda file: name in file):
        return False
    for file in files:
        file.check(name, deltas.shape[0 if file.is_transposed(name) else 1])
    return True


def solve(job: Job) -> torch.Tensor | None:
    """The merged delta of a whole tensor, fp32; None without Grams, where the plain mean is taken.

    In memory are three matrices (in, in) and two of the tensor's shape in float64.

    Raises:
        UntaxError: see ``check``; or a Gram holds NaN or infinity.
    """
    import torch

    files, name = open_all(Grams, job.values["gram"]), job.deltas.tensor
    if not _has_grams(files, job.deltas):
        return None
    transposed = files[0].is_transposed(name)
    total, weighted = _sums(job, files, transposed)
    if not bool(torch.isfinite(total).all()):
        raise UntaxError(
            f"A Gram of {name} holds NaN or infinity.", where=", ".join(job.values["gram"]), fix="Make the files again."
        )
    scale = float(total.diagonal().mean())
    if scale == 0:
        return None
    ridge = _RIDGE * scale
    factor, failed = torch.linalg.cholesky_ex(total)
    while bool(failed):
        # Features that were never active, or fewer tokens than features: the plain mean decides there. The same for all
        # models, so that equal deltas still give themselves.
        total.diagonal().add_(ridge)
        _add_mean(job, weighted, ridge)
        ridge *= 10
        factor, failed = torch.linalg.cholesky_ex(total)
    # weighted @ inverse, of a symmetric matrix; where the base stores (in, out), inverse @ weighted.
    merged = torch.cholesky_solve(weighted if transposed else weighted.T, factor)
    return (merged if transposed else merged.T).float().contiguous()


def _add_mean(job: Job, weighted: torch.Tensor, ridge: float) -> None:
    for model in range(job.deltas.models):
        if job.deltas.has(model):
            for part in _parts(len(weighted)):
                weighted[part].add_(job.deltas.rows(model, part), alpha=ridge / job.deltas.models)


def _sums(job: Job, files: tuple[Grams, ...], transposed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of G_k, sum of D_k G_k) in float64; the second as the base stores it."""
    import torch

    rows, columns = job.deltas.shape
    size = rows if transposed else columns
    total = torch.zeros(size, size, dtype=torch.float64)
    weighted = torch.zeros(rows, columns, dtype=torch.float64)
    for model, file in enumerate(files):
        gram = _shrunk(file.gram(job.deltas.tensor).double(), job.values["shrink"])
        total += gram
        if not job.deltas.has(model):
            continue
        for part in _parts(rows):
            delta = job.deltas.rows(model, part).double()
            if transposed:
                weighted += gram[:, part] @ delta
            else:
                weighted[part] += delta @ gram
    return total, weighted


def _parts(rows: int) -> Iterator[slice]:
    for start in range(0, rows, ROWS):
        yield slice(start, min(start + ROWS, rows))


def _shrunk(gram: torch.Tensor, shrink: float) -> torch.Tensor:
    diagonal = gram.diagonal().clone()
    gram.mul_(shrink).diagonal().copy_(diagonal)
    return gram


def _merge(block: Block) -> torch.Tensor:
    merged: torch.Tensor = block.deltas.mean(dim=0) if block.statistics is None else block.statistics[block.rows]
    return merged


regmean = Method(
    "regmean",
    (Parameter("gram", str, per_model=True), Parameter("shrink", float, default=0.9)),
    merge=_merge,
    statistics=solve,
    check=check,
    url="https://arxiv.org/abs/2212.09849",
)
