"""A run folder on disk: ``untax.yaml`` and what it expands to; nothing edited by hand is overwritten unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from untax.errors import UntaxError
from untax.files import write_text
from untax.recipes.axolotl_yaml import dump
from untax.recipes.graph import Layout, Plan
from untax.recipes.plan import plan
from untax.recipes.spec import RunSpec

SPEC_HEADER = """\
# The recipe of this run folder: the one file to edit. `untax recipe --from untax.yaml` expands it again.
# Paths are relative to the run folder.
"""


def spec_text(spec: RunSpec, *, notes: list[str] | None = None) -> str:
    """``untax.yaml`` as text, without the keys that have their default."""
    content: dict[str, Any] = spec.model_dump(exclude_none=True, exclude_defaults=True)
    content["arms"] = {name: getattr(spec.arms, name).model_dump() for name in spec.arms.names}
    ordered = {name: content[name] for name in type(spec).model_fields if name in content}
    ordered = {
        "base": spec.base,
        "device": spec.device,
        "seed": spec.seed,
        **{key: value for key, value in ordered.items() if key not in ("base", "device", "seed")},
    }
    return SPEC_HEADER + "".join(f"# {note}\n" for note in notes or []) + "\n" + dump(ordered)


def write_run_folder(
    spec: RunSpec,
    folder: Path,
    *,
    force: bool = False,
    notes: list[str] | None = None,
    layout: Layout | None = None,
    shown_folder: str | None = None,
) -> Plan:
    """Write the spec and every YAML of its plan into ``folder``.

    Files that are the same already stay untouched.

    Raises:
        UntaxError: files that differ are there and ``force`` is off: another run, or YAMLs edited by hand.
    """
    layout = layout or Layout()
    expanded = plan(spec, folder=shown_folder or str(folder), layout=layout)
    texts = {**expanded.files, layout.spec: spec_text(spec, notes=notes)}
    differing = [name for name, text in texts.items() if _content(folder / name) not in (None, text)]
    if differing and not force:
        listed = "\n         ".join(differing)
        raise UntaxError(
            f"The folder holds another run, or files edited by hand:\n         {listed}",
            where=folder,
            fix="Name another folder with -o, or add --force to overwrite these files (trained models stay).",
        )
    if folder.exists() and not folder.is_dir():
        raise UntaxError("The output path is a file.", where=folder, fix="Name a folder with -o.")
    for name, text in texts.items():
        if _content(folder / name) != text:
            write_text(folder / name, text)
    return expanded


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UntaxError(
            f"Cannot read: {error.strerror}.", where=path, fix="Check the folder's permissions."
        ) from error
