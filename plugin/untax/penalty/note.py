"""A note in every checkpoint: how the steps before it were penalised, and what was pruned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax.errors import UntaxError
from untax.files import new_file

if TYPE_CHECKING:
    import torch

NOTE_NAME = "untax-penalty.safetensors"


@dataclass(frozen=True)
class Note:
    """What a resumed training must know of its beginning.

    Attributes:
        identity: of the penalty's settings, as in the manifest.
        steps: penalised optimizer steps.
        tensors: which rows and columns of which layer are left, by name.
    """

    identity: Mapping[str, Any]
    steps: int
    tensors: Mapping[str, torch.Tensor]


def write_note(checkpoint: Path, note: Note) -> None:
    """Write the note into a checkpoint's folder."""
    from safetensors.torch import save_file

    facts = {"identity": json.dumps(note.identity), "steps": str(note.steps)}
    with new_file(checkpoint / NOTE_NAME) as part:
        save_file(dict(note.tensors), part, metadata=facts)


def read_note(checkpoint: Path) -> Note | None:
    """The note of a checkpoint, or None when it has none.

    Raises:
        UntaxError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = checkpoint / NOTE_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        return Note(json.loads(facts["identity"]), int(facts["steps"]), tensors)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UntaxError(
            f"The penalty's note in the checkpoint cannot be read: {error}.",
            where=path,
            fix="Resume from another checkpoint, or train from the start.",
        ) from error
