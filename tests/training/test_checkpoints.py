"""Half-written checkpoints: found at whatever byte they end, and only they are removed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from untax.training.checkpoints import remove_unfinished, unfinished


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What a trainer writes."""
    folder = tmp_path / "out/checkpoint-10"
    folder.mkdir(parents=True)
    save_file({"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5)}, folder / "adapter_model.safetensors")
    torch.save({"state": torch.ones(100)}, folder / "optimizer.pt")
    torch.save({"cpu": torch.get_rng_state()}, folder / "rng_state.pth")
    (folder / "adapter_config.json").write_text("{}")
    (folder / "trainer_state.json").write_text('{"global_step": 10, "log_history": []}')
    return folder


def test_a_whole_checkpoint_stays(checkpoint: Path):
    assert unfinished(checkpoint) is None
    assert remove_unfinished(checkpoint.parent) == []
    assert checkpoint.is_dir()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    name=st.sampled_from(["adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"]),
    kept=st.floats(0, 1, exclude_max=True),
)
def test_any_cut_is_seen(checkpoint: Path, name: str, kept: float):
    whole = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(whole[: int(kept * len(whole))])
    try:
        assert unfinished(checkpoint) == f"{name} is cut"
    finally:
        (checkpoint / name).write_bytes(whole)


def test_only_broken_checkpoints_are_removed(checkpoint: Path):
    later = checkpoint.with_name("checkpoint-20")
    shutil.copytree(checkpoint, later)
    (later / "trainer_state.json").unlink()
    (checkpoint.parent / "notes").mkdir()
    # Somebody's own copy, which no training goes on from.
    (checkpoint.parent / "checkpoint-best").mkdir()
    assert remove_unfinished(checkpoint.parent) == [later]
    assert checkpoint.is_dir()
    assert (checkpoint.parent / "notes").is_dir()
    assert (checkpoint.parent / "checkpoint-best").is_dir()
    assert not later.exists()


def test_formats_that_are_not_known_are_not_judged(checkpoint: Path):
    torch.save(torch.ones(3), checkpoint / "extra.pt", _use_new_zipfile_serialization=False)
    (checkpoint / "global_step10").mkdir()
    (checkpoint / "pytorch_model.bin").mkdir()
    assert unfinished(checkpoint) is None
    (checkpoint / "optimizer.pt").write_bytes(bytes((checkpoint / "optimizer.pt").stat().st_size))
    assert unfinished(checkpoint) == "optimizer.pt is cut"
