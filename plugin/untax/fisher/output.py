"""The file of a statistic and the manifest beside it: refused before the work, written after it, or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax import __version__
from untax.errors import UntaxError
from untax.fisher.store import write_tensors
from untax.manifest import write_manifest

if TYPE_CHECKING:
    import torch

SUFFIX = ".safetensors"
Progress = Callable[[int], contextlib.AbstractContextManager[Callable[[int], object]]]
"""Called with the number of texts, a context whose value is called with how many more were finished."""


def manifest_name(path: Path) -> str:
    """The manifest of a statistic's file; several may share a folder."""
    return f"{path.stem}.untax.json"


def check_output(out: Path, *, force: bool) -> None:
    """Make sure that a statistic can be written here.

    Raises:
        UntaxError: the name has another ending, the file is there and ``force`` is not given, or the folder cannot be
            written to.
    """
    if out.suffix != SUFFIX:
        raise UntaxError(f"The output is a {SUFFIX} file.", where=out, fix=f"Name it {out.stem or 'out'}{SUFFIX}.")
    if out.is_dir() or (out.exists() and not force):
        raise UntaxError("The output is there already.", where=out, fix="Name another file, or say --force.")
    there = next(parent for parent in out.absolute().parents if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UntaxError("Nothing can be written there.", where=there, fix="Make it writable or name another folder.")


def write(
    out: Path,
    what: str,
    tensors: Mapping[str, torch.Tensor],
    facts: Mapping[str, Any],
    inputs: dict[str, str],
    *,
    started: float,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write the file, then its manifest.

    Args:
        out: the file.
        what: ``fisher`` or ``gram``.
        tensors: by name.
        facts: what decides the numbers, ``seed`` among it: metadata of the file, and a section of the manifest.
        inputs: digests.
        started: when the work began.
        notes: metadata that readers of the file need.
    """
    metadata = {"what": what, "untax": __version__, **facts, **inputs, **(notes or {})}
    write_tensors(out, tensors, {key: str(value) for key, value in metadata.items()})
    section: dict[str, Any] = {what: {key: value for key, value in facts.items() if key != "seed"}}
    write_manifest(
        out.parent,
        what=what,
        outputs=[out.name],
        started=started,
        name=manifest_name(out),
        inputs=inputs,
        seed=facts["seed"],
        **section,
    )


@contextlib.contextmanager
def silent(count: int) -> Iterator[Callable[[int], object]]:
    """Progress that nobody sees."""
    yield lambda number: None
