"""A run folder on disk: ``untax.yaml`` and what it expands to; nothing edited by hand is overwritten unasked."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from untax.errors import UntaxError
from untax.files import disk_error, write_text
from untax.manifest import digest_bytes
from untax.recipes.arms import AnyArm
from untax.recipes.axolotl_yaml import dump
from untax.recipes.graph import Layout, Plan
from untax.recipes.plan import plan
from untax.recipes.spec import RunSpec

SPEC_HEADER = """\
# The recipe of this run folder: the one file to edit. `untax recipe --from untax.yaml` expands it again.
# Paths are relative to the run folder.
"""
RECORD = ".untax/generated.json"
"""In the run folder: {file: SHA-256 of the text that was generated last}."""
LAUNCH = re.compile(r"^# Run:   cd .* && (?=axolotl |mergekit-yaml |untax merge )", re.MULTILINE)


def spec_text(spec: RunSpec, *, notes: list[str] | None = None) -> str:
    """``untax.yaml`` as text, without the keys that have their default."""
    content: dict[str, Any] = spec.model_dump(exclude_none=True, exclude_defaults=True)
    content["arms"] = {name: _arm_content(name, arm) for name, arm in spec.arms.items()}
    ordered = {name: content[name] for name in type(spec).model_fields if name in content}
    ordered = {
        "base": spec.base,
        "device": spec.device,
        "seed": spec.seed,
        **{key: value for key, value in ordered.items() if key not in ("base", "device", "seed")},
    }
    return SPEC_HEADER + "".join(f"# {note}\n" for note in notes or []) + "\n" + dump(ordered)


def _arm_content(name: str, arm: AnyArm) -> dict[str, Any]:
    """An arm with all its settings, defaults too: what is trained must not depend on the version that reads it."""
    content: dict[str, Any] = arm.model_dump(exclude_none=True, exclude=set(arm.idle()))
    if "merge" in content:
        content["merge"] = [merge["method"] if len(merge) == 1 else merge for merge in content["merge"]]
    kind, last = content.pop("arm"), ("merge", "statistics", "scales")
    ordered = {key: value for key, value in content.items() if key not in last}
    ordered |= {key: content[key] for key in last if key in content}
    return ordered if kind == name else {"arm": kind, **ordered}


@dataclass(frozen=True)
class Changes:
    """What writing a run folder would change.

    Attributes:
        plan: what the spec expands to.
        written: file -> (text on disk or None, new text), of those that differ; ``untax.yaml`` last.
        kept: files that were edited by hand and differ from what the spec expands to: they stay as they are.
        removed: files that were generated for an earlier plan, are as they were, and are no part of this one.
    """

    plan: Plan
    written: dict[str, tuple[str | None, str]]
    kept: tuple[str, ...]
    removed: tuple[str, ...]

    def diff(self, folder: Path) -> str:
        """A unified diff from what is on disk to what would be written; of kept files what the spec would have."""
        removed = {name: (_content(folder / name), "") for name in self.removed}
        kept = {name: (_content(folder / name), self.plan.files[name]) for name in self.kept}
        lines: list[str] = []
        for name, (old, new) in sorted({**self.written, **removed, **kept}.items()):
            mark = " (edited by hand: kept)" if name in self.kept else ""
            lines += difflib.unified_diff(
                (old or "").splitlines(keepends=True),
                new.splitlines(keepends=True),
                "/dev/null" if old is None else name,
                "/dev/null" if name in self.removed else name + mark,
            )
        return "".join(lines)


def changes(
    spec: RunSpec,
    folder: Path,
    *,
    force: bool = False,
    notes: list[str] | None = None,
    layout: Layout | None = None,
    shown_folder: str | None = None,
    source: Path | None = None,
) -> Changes:
    """What ``write_run_folder`` with the same arguments would do.

    Raises:
        UntaxError: the folder is a file, or ``force`` is off and it holds another run.
    """
    layout = layout or Layout()
    _refuse_file(folder)
    expanded = plan(spec, folder=shown_folder or str(folder), layout=layout)
    contents = {name: _content(folder / name) for name in expanded.files}
    # A YAML whose launch command alone names the folder otherwise is the same: rewriting it would train it again. So
    # is one with the same keys, once there is something that it made.
    made = set() if force else _made(expanded, folder)
    new = {
        name: text
        for name, text in expanded.files.items()
        if _essence(contents[name]) != _essence(text) and not (name in made and _same_keys(contents[name], text))
    }
    record = {} if layout.name else _read_record(folder)
    edited = [name for name in new if contents[name] is not None and _digest(contents[name]) != record.get(name)]
    text = spec_text(spec, notes=notes)
    is_source = source is not None and source.resolve() == (folder / layout.spec).resolve()
    old_text = text if is_source else _content(folder / layout.spec)
    if not force:
        other = [layout.spec] if old_text not in (None, text) else []
        _refuse_another(folder, edited if other or not record else [], other)
    kept = () if force else tuple(edited)
    written = {name: (contents[name], new[name]) for name in new if name not in kept}
    if old_text != text:
        written[layout.spec] = (old_text, text)
    removed = () if layout.name else tuple(_left_over(folder, record, expanded))
    return Changes(expanded, written, kept, removed)


def write_run_folder(
    spec: RunSpec,
    folder: Path,
    *,
    force: bool = False,
    notes: list[str] | None = None,
    layout: Layout | None = None,
    shown_folder: str | None = None,
    source: Path | None = None,
) -> Changes:
    """Write the spec and every YAML of its plan into ``folder``.

    Files that are the same already stay untouched, those with the same keys as well once something was made by them
    (their digest decides whether it is made again), and ``untax.yaml`` when it is ``source`` itself. What was
    generated last and was not edited since is replaced, or removed when the plan no longer has it; what was edited by
    hand stays.

    Args:
        spec: the recipe.
        folder: the run folder.
        force: overwrite what was edited by hand or belongs to another run.
        notes: lines for the head of ``untax.yaml``.
        layout: where things lie below the folder; one with a name keeps no record of what was generated.
        shown_folder: the folder as the launch commands name it.
        source: the file that the spec was read from.

    Returns:
        what was changed.

    Raises:
        UntaxError: the folder is a file, or ``force`` is off and it holds another run, or YAMLs that no run generated.
    """
    due = changes(spec, folder, force=force, notes=notes, layout=layout, shown_folder=shown_folder, source=source)
    named = bool(layout and layout.name)
    record = {} if named else _read_record(folder)
    for name, (_, text) in due.written.items():
        write_text(folder / name, text)
    for name in due.removed:
        (folder / name).unlink()
    if not named:
        _write_record(folder, due, record)
    return due


def _refuse_file(folder: Path) -> None:
    """The folder, or the nearest of its parents that is there, is a folder."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if there is not None and not there.is_dir():
        raise UntaxError("The output path is a file.", where=there, fix="Name a folder with -o.")


def _refuse_another(folder: Path, edited: list[str], other: list[str]) -> None:
    if edited or other:
        listed = "".join(f"\n         {name}" for name in [*edited, *other])
        raise UntaxError(
            f"The folder holds another run, or files edited by hand:{listed}",
            where=folder,
            fix="Name another folder with -o, or add --force to overwrite these files (trained models stay).",
        )


def _essence(text: str | None) -> str | None:
    """A YAML's text without the folder that its launch command goes to."""
    return None if text is None else LAUNCH.sub("# Run:   ", text, count=1)


def _made(expanded: Plan, folder: Path) -> set[str]:
    """The YAMLs whose output is there, or a part of it."""
    return {
        node.config
        for node in expanded.nodes
        if node.config is not None and any((folder / output).exists() for output in node.outputs)
    }


def _same_keys(old: str | None, new: str) -> bool:
    """Whether two YAMLs differ in nothing but comments, the order of keys and the way of writing."""
    try:
        return old is not None and bool(yaml.safe_load(old) == yaml.safe_load(new))
    except yaml.YAMLError:
        return False


def _read_record(folder: Path) -> dict[str, Any]:
    """{file: digest of the text that was generated last}; nothing without a readable record."""
    try:
        record = json.loads(_content(folder / RECORD) or "{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(folder: Path, due: Changes, record: dict[str, Any]) -> None:
    """Of a file that is not as generated the record keeps what was, so that it goes on to count as edited."""
    own = {}
    for name, text in due.plan.files.items():
        there = _content(folder / name)
        own[name] = _digest(there) if _essence(there) == _essence(text) else record.get(name)
    text = json.dumps({name: digest for name, digest in sorted(own.items()) if digest}, indent=2) + "\n"
    if _content(folder / RECORD) != text:
        write_text(folder / RECORD, text)


def _left_over(folder: Path, record: dict[str, Any], expanded: Plan) -> Iterator[str]:
    """What was generated for an earlier plan and is still as it was."""
    for name in sorted(set(record) - set(expanded.files)):
        path = folder / name
        generated = path.suffix == ".yaml" and path.parent in (folder / "recipes", folder / "mergekit_configs")
        if generated and not path.is_symlink() and path.is_file() and _digest(_content(path)) == record[name]:
            yield name


def _digest(text: str | None) -> str | None:
    return None if text is None else digest_bytes(text.encode("utf-8"))


def _content(path: Path) -> str | None:
    """The text of a file, or None without one; bytes that are no UTF-8 make it one that untax never wrote."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise disk_error(error, path) from error
