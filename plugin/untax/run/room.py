"""Clearing the way for what a node will make, so that nothing is lost and no half-made thing is taken for whole."""

from __future__ import annotations

import glob
import itertools
import os
import shutil
from pathlib import Path

from untax.errors import UntaxError
from untax.files import plain_disk_errors
from untax.manifest import MANIFEST_NAME, read_manifest
from untax.recipes.graph import Node
from untax.run.done import begun_otherwise, manifest_name
from untax.run.workers import STATE
from untax.run.yamls import read_yaml
from untax.training.checkpoints import remove_unfinished
from untax.training.started import is_claimed, started_with

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".distcp", ".gguf")
"""What models and checkpoints are kept in: by Transformers, DeepSpeed, FSDP and llama.cpp."""


def make_room(node: Node, folder: Path) -> None:
    """Clear the way for a node's outputs. What can be made again is removed; anything else is set aside, never deleted.

    An interrupted training of the very same recipe keeps its checkpoints and goes on from the last whole one.

    Raises:
        UntaxError: another process is training into the folder, or the disk refuses.
    """
    if node.kind == "score":
        return  # `untax eval` replaces single files itself
    for name in node.outputs:
        output = folder / name
        _remove_parts(output)
        if not os.path.lexists(output) or (node.kind == "train" and _continues(node, output, folder)):
            continue
        with plain_disk_errors(output):
            if _made_again(node, output):
                shutil.rmtree(output)
            else:
                _set_aside(node, output, folder)


def _remove_parts(output: Path) -> None:
    """Remove what killed commands were about to put there (``untax.files``): each may be as large as the model."""
    # As long as `tempfile` makes them: `*` would take what `average-2.5` is being made of for a part of `average-2`.
    for part in output.parent.glob(f".{glob.escape(output.name)}.{'?' * 8}.part"):
        with plain_disk_errors(part):
            shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink()


def _continues(node: Node, output: Path, folder: Path) -> bool:
    """Whether an interrupted training left checkpoints of the very YAML that is run now."""
    if is_claimed(output):
        raise UntaxError(
            "Another process is training into this folder.",
            where=output,
            fix="Wait for it or stop it, then run the same command again.",
        )
    begun = started_with(output)
    if begun is None or (output / MANIFEST_NAME).exists():
        return False
    if begun_otherwise(begun, Path(str(node.config)), folder) is not None:
        return False
    if read_yaml(folder / str(node.config)).get("save_only_model"):
        return False  # Without the optimizer's state the trainer goes on too, to other weights.
    remove_unfinished(output)
    return any(output.glob("checkpoint-*"))


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
    return manifest is not None and weights <= manifest["outputs"].keys()


def _set_aside(node: Node, output: Path, folder: Path) -> None:
    replaced = folder / STATE / "replaced"
    replaced.mkdir(parents=True, exist_ok=True)
    places = (replaced / f"{node.name}-{number}" for number in itertools.count(1))
    os.replace(output, next(place for place in places if not os.path.lexists(place)))
