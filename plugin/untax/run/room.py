"""Clearing the way for what a node will make, so that nothing is lost and no half-made thing is taken for whole."""

from __future__ import annotations

import glob
import itertools
import os
import shutil
from pathlib import Path

from untax.errors import UntaxError
from untax.files import plain_disk_errors
from untax.manifest import MANIFEST_NAME, changed_outputs, read_manifest
from untax.recipes.graph import Node
from untax.run.done import begun_otherwise, manifest_name
from untax.run.workers import STATE
from untax.run.yamls import read_yaml
from untax.training.checkpoints import remove_unfinished, step_of, unfinished
from untax.training.started import is_claimed, started_with

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".distcp", ".gguf")
"""What models and checkpoints are kept in: by Transformers, DeepSpeed, FSDP and llama.cpp."""


def make_room(node: Node, folder: Path) -> str:
    """Clear the way for a node's outputs. What can be made again is removed; anything else is set aside, never deleted.

    An interrupted training of the very same recipe keeps its checkpoints and goes on from the last whole one.

    Returns:
        What was done with something of worth, in a few words; empty if there was none.

    Raises:
        UntaxError: another process is training into the folder, or the disk refuses.
    """
    notes: list[str] = []
    for name in () if node.kind == "score" else node.outputs:  # `untax eval` replaces single files itself
        output = folder / name
        _remove_parts(output)
        if not os.path.lexists(output):
            continue
        if node.kind == "train":
            _refuse_claimed(output)
            checkpoint = resumes_from(node, folder)
            if checkpoint is not None:
                remove_unfinished(output)
                notes.append(f"goes on from {checkpoint.name}")
                continue
        with plain_disk_errors(output):
            if _made_again(node, output):
                shutil.rmtree(output)
            else:
                notes.append(f"what was there is now in {_set_aside(node, output, folder)}")
    return ", ".join(notes)


def resumes_from(node: Node, folder: Path) -> Path | None:
    """The checkpoint of an interrupted training of the very same recipe that it goes on from, or None.

    Nothing is changed.
    """
    output = folder / node.outputs[0]
    begun = started_with(output)
    if node.kind != "train" or begun is None or (output / MANIFEST_NAME).exists():
        return None
    if begun_otherwise(begun, Path(str(node.config)), folder) is not None:
        return None
    config = read_yaml(folder / str(node.config))
    # Without the optimizer's state the trainer goes on too, to other weights; without these keys it does not at all.
    resumes = config.get("auto_resume_from_checkpoints") or config.get("resume_from_checkpoint")
    if config.get("save_only_model") or not resumes:
        return None
    whole = [path for path in output.glob("checkpoint-*") if step_of(path) is not None and unfinished(path) is None]
    return max(whole, key=lambda path: step_of(path) or 0, default=None)


def _remove_parts(output: Path) -> None:
    """Remove what killed commands were about to put there (``untax.files``): each may be as large as the model."""
    # As long as `tempfile` makes them: `*` would take what `average-2.5` is being made of for a part of `average-2`.
    for part in output.parent.glob(f".{glob.escape(output.name)}.{'?' * 8}.part"):
        with plain_disk_errors(part):
            shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink()


def _refuse_claimed(output: Path) -> None:
    if is_claimed(output):
        raise UntaxError(
            "Another process is training into this folder.",
            where=output,
            fix="Wait for it or stop it, then run the same command again.",
        )


def _made_again(node: Node, output: Path) -> bool:
    """Whether nothing is lost with a folder: untax made all weights in it from what is still here, or it has none."""
    if output.is_symlink() or not output.is_dir():
        return False
    weights = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.suffix in WEIGHTS}
    if node.kind == "train":
        return not weights
    try:
        manifest = read_manifest(output, manifest_name(node))
    except UntaxError:
        return False
    if manifest is not None and node.kind in ("replay", "fisher"):
        return {path.name for path in output.iterdir()} <= {*manifest["outputs"], manifest_name(node)}
    return manifest is not None and weights <= manifest["outputs"].keys() and not changed_outputs(output, manifest)


def _set_aside(node: Node, output: Path, folder: Path) -> str:
    """Move a folder away, and return where to, seen from the run folder."""
    replaced = folder / STATE / "replaced"
    replaced.mkdir(parents=True, exist_ok=True)
    places = (replaced / f"{node.name}-{number}" for number in itertools.count(1))
    place = next(place for place in places if not os.path.lexists(place))
    os.replace(output, place)
    return place.relative_to(folder).as_posix()
