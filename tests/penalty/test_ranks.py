"""Two ranks on gloo: DDP with both kinds of checkpointing, and FSDP2; what was added, against float64 autograd.

``ranks.py`` is what each rank runs. Its trainings share a pair of processes, since starting one takes most of the time.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from toys import Workspace, fresh_axolotl

from . import float64
from .pairs import L1, RANKS, STEPS, TRAININGS, Run, run_all
from .recording import Step, Tensors


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_all(tmp_path_factory.mktemp("quick"), TRAININGS["quick"])


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_all(tmp_path_factory.mktemp("ddp"), TRAININGS["ddp"])


@pytest.fixture(scope="module")
def fsdp2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_all(tmp_path_factory.mktemp("fsdp2"), TRAININGS["fsdp2"])


@pytest.fixture(scope="module")
def fsdp2_full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_all(tmp_path_factory.mktemp("full"), TRAININGS["fsdp2_full"])


@pytest.fixture(
    params=[
        pytest.param((pair, name), id=name, marks=[] if pair == "quick" else pytest.mark.slow)
        for pair, trainings in TRAININGS.items()
        for name in trainings
    ]
)
def run(request: pytest.FixtureRequest) -> Run:
    pair, name = request.param
    return Run(name, request.getfixturevalue(pair), TRAININGS[pair][name])


def test_gradient_is_that_of_the_mean_loss_plus_one_penalty(run: Run) -> None:
    """The penalty is added once, to the mean of the ranks, whatever the accumulation and whoever has which rows."""
    base, penalty = run.base(), run.penalty()
    for index in range(STEPS):
        first, second = (run.step(index, rank) for rank in RANKS)
        assert len(first.batches) == len(second.batches) == run.changes.get("gradient_accumulation_steps", 1)
        assert same(first.weights, second.weights)
        assert same(first.gradient, second.gradient)
        of_penalty = float64.gradients_of_penalty(base, first, penalty)
        of_ranks = [float64.gradients_of_loss(base, step)[0] for step in (first, second)]
        of_loss = {name: (grad + of_ranks[1][name]) / 2 for name, grad in of_ranks[0].items()}
        if "delta_sparsity" in run.changes:
            left = kept(first.weights)
            of_loss, of_penalty = (
                {name: left[name] * grad for name, grad in of.items()} for of in (of_loss, of_penalty)
            )
        error = float64.error_of_gradient(first, of_loss, of_penalty)
        assert error < 1e-5
        if run.changes.get("delta_target") != "factors":
            assert (float64.size(of_penalty) > 0) == (index > 0), "the delta is 0 before the first step, and only then"
        # Pruning takes from the loss's gradient too.
        alone = math.nan if "delta_sparsity" in run.changes else float64.error_of_added(first, of_penalty)
        assert not alone >= 1e-4
        print(f"{run.name}, step {index}: relative error {error:.1e}, of the penalty alone {alone:.1e}")


def test_ranks_saw_different_batches_and_ended_alike(run: Run) -> None:
    for index in range(STEPS):
        first, second = (run.step(index, rank) for rank in RANKS)
        assert not rows(first) & rows(second)
    counts = [[labelled(run.step(index, rank)) for index in range(STEPS)] for rank in RANKS]
    assert sum(first != second for first, second in zip(*counts, strict=True)) >= 2, "tokens are divided unequally"
    assert same(run.end(0), run.end(1))
    assert not same(run.end(0), run.step(STEPS - 1, 0).weights)


def test_parameters_lie_as_they_should(run: Run) -> None:
    for rank in RANKS:
        uneven = "(Shard(dim=0),) uneven"
        expected = ["(Shard(dim=0),) even", uneven] if "fsdp_config" in run.changes else ["whole on every rank"]
        assert run.told(rank)["division"] == expected


def test_norms_in_log_and_manifest(run: Run) -> None:
    base = run.base()
    logs = [run.told(rank)["logs"] for rank in RANKS]
    after = [*(run.step(index, 0).weights for index in range(1, STEPS)), run.end(0)]
    for entries in logs:
        assert len(entries) == STEPS
        for entry, weights in zip(entries, after, strict=True):
            norm, sparsity = measured(base, weights)
            assert entry["l1_norm"] == pytest.approx(norm, rel=1e-5)
            assert entry["sparsity"] == pytest.approx(sparsity, abs=3e-5)
    section = run.manifest["penalty"]
    assert section["steps_penalised"] == run.manifest["training"]["steps"] == STEPS
    assert (section["l1_norm"], section["sparsity"]) == (logs[0][-1]["l1_norm"], logs[0][-1]["sparsity"])
    assert section["modules"] == len(float64.deltas(base, run.end(0)))
    assert (section["steps_before"], section["l1_norm_start"]) == (0, 0)
    if "delta_sparsity" in run.changes:
        zeros = [(delta == 0).double().mean() for delta in float64.deltas(base, run.end(0)).values()]
        assert section["zeros"] == pytest.approx(float(sum(zeros)) / len(zeros), abs=1e-6)
        assert section["zeros"] > 0.6


def test_one_rank_writes_the_manifest_of_what_is_saved(run: Run) -> None:
    assert [run.told(rank)["wrote the manifest"] for rank in RANKS] == [True, False]
    name = "model.safetensors" if "adapter" in run.changes else "adapter_model.safetensors"
    assert name in run.manifest["outputs"]
    # Axolotl leaves the wrapper of fsdp_config's activation_checkpointing in an adapter's names.
    saved = {key.replace("_checkpoint_wrapped_module.", ""): t for key, t in load_file(run.out / name).items()}
    for key, tensor in run.end(0).items():
        assert torch.equal(saved[key.replace(".default", "")], tensor), key


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"zero_optimization": {"stage": 1}}', "DeepSpeed ZeRO-1 steps inside the backward pass"),
        ('{"zero_optimization": {"stage": 2}}', "DeepSpeed ZeRO-2 steps inside the backward pass"),
        ('{"zero_optimization": {"stage": 3}}', "DeepSpeed ZeRO-3 divides parameters and gradients over the ranks"),
        ('{"train_batch_size": "auto"}', "DeepSpeed steps inside the backward pass"),
        ("not JSON", "DeepSpeed steps inside the backward pass"),
        (None, "DeepSpeed steps inside the backward pass"),
    ],
)
def test_deepspeed_is_refused_at_once(workspace: Workspace, content: str | None, reason: str) -> None:
    """By Axolotl's own command line; a file that is not there is refused just so."""
    from axolotl.cli.main import cli
    from click.testing import CliRunner

    if content is not None:
        (workspace.folder / "zero.json").write_text(content)
    config = workspace.config(**L1, deepspeed="zero.json")
    with fresh_axolotl():
        result = CliRunner().invoke(cli, ["train", str(config), "--launcher", "python"])
    assert result.exit_code == 2
    assert f"cannot be used in this training: {reason}" in result.output
    assert f"where: {config}: deepspeed" in result.output
    assert "fix:   Use DDP, or FSDP2" in result.output
    assert not (workspace.folder / "out").exists()


def same(ours: Tensors, theirs: Tensors) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def kept(weights: Tensors) -> Tensors:
    """Which rows of B and columns of A are not pruned. Before the first step B is zero as a whole, and none is."""
    left = {}
    for name, value in weights.items():
        alive = (value != 0).any(dim=1 if ".lora_B." in name else 0, keepdim=True).expand_as(value)
        left[name] = alive if value.any() else torch.ones_like(alive)
    return left


def rows(step: Step) -> set[str]:
    return {str(row) for batch in step.batches for row in batch["input_ids"].tolist()}


def labelled(step: Step) -> int:
    return sum(int((batch["labels"] != -100).sum()) for batch in step.batches)


def measured(base: Any, weights: Tensors) -> tuple[float, float]:
    """Sum of magnitudes, and the mean over the layers of the share below 1e-5."""
    sizes = [delta.detach().abs() for delta in float64.deltas(base, weights).values()]
    return float(sum(size.sum() for size in sizes)), float(sum((size < 1e-5).double().mean() for size in sizes)) / len(
        sizes
    )
