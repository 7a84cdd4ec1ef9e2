"""What a checkpoint says of the penalty it was trained with, and trainings that change on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from toys import Workspace
from untax.errors import UntaxError
from untax.penalty.note import NOTE_NAME, Note, read_note, write_note
from untax.run.proof import missing_proof

from .stand_in import StandIn, attach

X = torch.ones(4, 5)


def callback(trainer: StandIn) -> Any:
    return trainer.callback


def events(folder: Path, step: int) -> tuple[Any, Any, Any]:
    state = SimpleNamespace(global_step=step, max_steps=20, is_world_process_zero=True)
    return SimpleNamespace(output_dir=str(folder)), state, None


def test_a_note_is_read_as_it_was_written(tmp_path: Path) -> None:
    note = Note({"l1": 0.1, "only": ["q_proj"], "target": "product"}, 7, {"a.rows": torch.tensor([True, False])})
    write_note(tmp_path, note)
    found = read_note(tmp_path)
    assert found is not None
    assert (found.identity, found.steps) == (note.identity, 7)
    assert torch.equal(found.tensors["a.rows"], note.tensors["a.rows"])
    assert [path.name for path in tmp_path.iterdir()] == [NOTE_NAME]
    assert read_note(tmp_path / "other") is None


def test_a_cut_off_note(tmp_path: Path) -> None:
    write_note(tmp_path, Note({}, 7, {"a": torch.ones(9)}))
    path = tmp_path / NOTE_NAME
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UntaxError, match="cannot be read"):
        read_note(tmp_path)


def test_a_checkpoint_is_resumed_by_the_same_penalty_only(tmp_path: Path) -> None:
    first = StandIn()
    attach(first, {"delta_l1": 0.1})
    for _ in range(3):
        first.training_step(X)
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    first.save_model(str(checkpoint))

    def resumed(lambdas: dict[str, float], step: int = 3, **options: Any) -> Any:
        trainer = StandIn()
        attached = attach(trainer, lambdas, **options)
        trainer.state.global_step = step
        trainer.train(str(checkpoint))
        callback(trainer).on_train_begin(*events(tmp_path, step))
        return attached

    again = resumed({"delta_l1": 0.1})
    assert (again.steps_before, again.steps) == (3, 0)
    (tmp_path / "out").mkdir()
    first.save_model(str(tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir()), "only checkpoints have a note"
    for change in ({"lambdas": {"delta_l1": 0.2}}, {"lambdas": {"delta_l1": 0.1}, "modules": ("0",)}):
        with pytest.raises(UntaxError, match=r"3 of the checkpoint's 3 steps.*asked for"):
            resumed(**change)
    with pytest.raises(UntaxError, match="3 of the checkpoint's 4 steps"):
        resumed({"delta_l1": 0.1}, step=4)
    (checkpoint / NOTE_NAME).unlink()
    with pytest.raises(UntaxError, match="does not say"):
        resumed({"delta_l1": 0.1})


def test_layers_that_are_frozen_on_the_way_stop_the_training() -> None:
    """As LISA does: what is trained then would not be penalised."""
    trainer = StandIn()
    attached = attach(trainer, {"delta_l1": 0.1})
    trainer.training_step(X)
    next(p for p in trainer.model.parameters() if p.requires_grad).requires_grad_(False)
    with pytest.raises(UntaxError, match="Other parameters are trained now"):
        trainer.training_step(X)
    assert attached.steps == 1


def test_a_training_that_begins_again_counts_anew() -> None:
    """As with auto_find_batch_size, after running out of memory."""
    trainer = StandIn()
    attached = attach(trainer, {"delta_l1": 0.1})
    trainer.training_step(X)
    callback(trainer).on_train_begin(*events(Path(), 0))
    assert (attached.steps, attached.steps_before) == (0, 0)


def test_killed_after_the_last_checkpoint(workspace: Workspace, axolotl_train: Callable[[Path], None]) -> None:
    """There is no step left to take, and all of them were penalised."""
    import yaml

    config = workspace.config(
        delta_l1=1e-3,
        max_steps=None,
        num_epochs=1,
        save_strategy="steps",
        save_steps=6,
        auto_resume_from_checkpoints=True,
    )
    axolotl_train(config)
    first = workspace.manifest()
    Path("out/untax.json").unlink()
    axolotl_train(config)
    section = workspace.manifest()["penalty"]
    assert (section["steps_before"], section["steps_penalised"]) == (12, 0)
    assert section["l1_norm"] == first["penalty"]["l1_norm"]
    assert missing_proof(yaml.safe_load(config.read_text()), workspace.manifest()) is None
