"""What a dead training leaves behind: it goes on from the last whole checkpoint, and believes none of its pickles."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from .fault_folder import (
    as_if_killed_at_the_end,
    as_undisturbed,
    completes,
    copy,
    log_of,
    manifest,
    resumed_from,
    said,
    untax_run,
)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_trainings_go_on_from_the_last_whole_checkpoint(undisturbed: Path, tmp_path: Path):
    """Bit-identical with the L1 penalty (sft) and without (the clusters), from the middle and from the start."""
    folder = copy(undisturbed, tmp_path / "run", without=["vanilla", "average"])
    first, second, last = as_if_killed_at_the_end(folder, "sft")
    shutil.rmtree(last)
    cut(second / "adapter_model.safetensors")
    first_of_0, second_of_0, last_of_0 = as_if_killed_at_the_end(folder, "cluster-0")
    shutil.rmtree(last_of_0)
    (second_of_0 / "trainer_state.json").unlink()
    for number, checkpoint in enumerate(as_if_killed_at_the_end(folder, "cluster-1")):
        cut(checkpoint / ("optimizer.pt", "scheduler.pt", "rng_state.pth")[number])
    completes(folder, undisturbed)
    for name, checkpoint in (("sft", first), ("cluster-0", first_of_0)):
        assert resumed_from(folder, name) == int(checkpoint.name.split("-")[1]) > 0, name
    assert resumed_from(folder, "cluster-1") == 0
    section = manifest(folder, "sft")["penalty"]
    assert (section["steps_before"], section["steps_penalised"]) == (24, 8)
    for name in ("sft", "cluster-0", "cluster-1"):
        before, after = (manifest(place, name)["training"] for place in (undisturbed, folder))
        assert {key: after[key] for key in ("steps", "tokens", "loss_first", "loss_last")} == {
            key: before[key] for key in ("steps", "tokens", "loss_first", "loss_last")
        }, name


@pytest.mark.slow
def test_trainings_that_were_killed_after_their_last_step(undisturbed: Path, tmp_path: Path):
    """The last checkpoint is there, and nothing else."""
    folder = copy(undisturbed, tmp_path / "run", without=["vanilla", "average"])
    for name, steps in (("sft", 32), ("cluster-0", 17)):
        assert int(as_if_killed_at_the_end(folder, name)[-1].name.split("-")[1]) == steps
    completes(folder, undisturbed)
    assert resumed_from(folder, "sft") == 32


class Evil:
    """What makes a file when it is unpickled without care."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mkdir, (str(self.file), 0o777)


@pytest.mark.slow
def test_pickles_in_checkpoints_are_not_obeyed(undisturbed: Path, tmp_path: Path):
    import torch

    folder = copy(undisturbed, tmp_path / "run", without=["vanilla", "average"])
    evil, made = tmp_path / "evil", {}
    for name, file in (("sft", "optimizer.pt"), ("cluster-0", "scheduler.pt"), ("cluster-1", "rng_state.pth")):
        *_, made[name], last = as_if_killed_at_the_end(folder, name)
        shutil.rmtree(last)
        torch.save({"state": Evil(evil)}, made[name] / file)
    torch.load(made["sft"] / "optimizer.pt", weights_only=False)
    assert evil.is_dir(), "it is obeyed by whoever trusts it"
    evil.rmdir()
    text = untax_run(folder, code=2)
    assert not evil.exists()
    for name, checkpoint in made.items():
        assert f"{name}: ended with exit code 1 (a checkpoint holds something else than a training saves" in text, name
        assert f"outputs/{name}/{checkpoint.name}" in log_of(folder, name).read_text() + text
        shutil.rmtree(checkpoint)
    untax_run(folder)
    as_undisturbed(folder, undisturbed)
    assert not evil.exists()
    assert resumed_from(folder, "sft") == 24, said(folder)
