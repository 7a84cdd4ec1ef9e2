"""Where a merge goes: the same one again, another one in the way, room on the disk, remains of a killed run."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from untax.errors import UntaxError
from untax.files import new_folder
from untax.manifest import MANIFEST_NAME, changed_outputs, read_manifest
from untax.merge.asked import differences

_NAMES = {"how": "scale, engine or rank"}
_CONFIG = "mergekit_config.yml"
_OF_MERGEKIT = {".safetensors", ".json", ".md", ".yml", ".model", ".txt", ".jinja"}


def is_done(out: Path, wanted: dict[str, Any], *, force: bool) -> bool:
    """Whether ``out`` already holds this very merge, whole.

    Args:
        out: the output folder.
        wanted: the manifest's sections that identify a merge.
        force: replace another merge.

    Raises:
        UntaxError: ``out`` holds something else, and it is no merge or ``force`` is not given.
    """
    if not out.exists():
        return False
    if not out.is_dir():
        raise UntaxError("The output is a file, not a folder.", where=out, fix="Name another folder.")
    if not any(out.iterdir()):
        return False
    if force:
        _check_replaceable(out)
        return False
    manifest = read_manifest(out)
    reason = "files that no manifest accounts for" if manifest is None else _difference(out, manifest, wanted)
    if reason is None:
        return True
    raise UntaxError(
        f"The output folder holds something else: {reason}.",
        where=out,
        fix="Name another folder, or say --force to replace it, which holds for merges only.",
    )


def _check_replaceable(out: Path) -> None:
    """A merge can be made again; whatever else lies in the folder cannot."""
    manifest = read_manifest(out)
    if manifest is not None and "merge" in manifest:
        known = {*manifest["outputs"], MANIFEST_NAME, "README.md", _CONFIG}
    elif manifest is None and (out / _CONFIG).is_file() and (out / "config.json").is_file():
        known = {file.name for file in out.iterdir() if file.is_file() and file.suffix in _OF_MERGEKIT}
    else:
        known = set()
    strange = sorted(entry.name for entry in out.iterdir() if entry.name not in known)
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise UntaxError(
            f"--force replaces merges, and no merge made {', '.join(strange[:3])}{more}.",
            where=out,
            fix="Name another folder, or move these elsewhere.",
        )


def _difference(out: Path, manifest: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    if manifest["what"] not in ("model", "adapter") or "merge" not in manifest:
        return f"another artifact ({manifest['what']})"
    left = dict(wanted)
    if _same_recipe(manifest, wanted):
        left = {section: value for section, value in wanted.items() if section not in ("config", "inputs")}
    for section, value in left.items():
        if _content(manifest.get(section)) != _content(value):
            return f"another merge, with other {_NAMES.get(section, section)}"
    changed = changed_outputs(out, manifest)
    return f"this merge, but changed since ({', '.join(changed)})" if changed else None


def _same_recipe(manifest: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a merge was made by the same YAML from the same models, whatever they are called."""
    recorded, config = manifest.get("config"), wanted.get("config")
    if not isinstance(recorded, dict) or not isinstance(config, dict) or "keys" not in recorded:
        return False
    inputs = manifest.get("inputs")
    known = inputs if isinstance(inputs, dict) else {}
    return not differences(recorded["keys"], known, config["keys"], wanted["inputs"].get)


def check_room(out: Path, needed: int) -> None:
    """Compare the free disk space with a rough estimate in bytes.

    Raises:
        UntaxError: there is too little.
    """
    folder = next(parent for parent in (out, *out.resolve().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UntaxError(
            f"The merge needs about {_size(needed)} of disk, and {_size(free)} are free.",
            where=out,
            fix="Free some space or name a folder on another disk.",
        )


def _content(section: Any) -> Any:
    """A file is identified by its digest, wherever it lies."""
    return section["digest"] if isinstance(section, dict) and "digest" in section else section


@contextlib.contextmanager
def output_folder(out: Path, *, replace: bool) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place when the block ends well; until then ``out`` stays as it was.

    Raises:
        UntaxError: see ``untax.files.new_folder``.
    """
    target = out.with_name(f".{out.name}.new.part") if replace and out.exists() else out
    remove_stale(out)
    with new_folder(target) as part, _locked(part):
        yield part
    if target is not out:
        _swap(target, out)


def _swap(new: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old.part")
    out.rename(old)
    new.rename(out)
    shutil.rmtree(old) if old.is_dir() else old.unlink()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Mark a folder as in use by a living process; the lock goes with the process, however it ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def remove_stale(out: Path) -> None:
    """Remove what killed merges into ``out`` left beside it; what one was about to replace comes back."""
    old, name = out.with_name(f".{out.name}.old.part"), glob.escape(out.name)
    if old.exists() and not out.exists():
        old.rename(out)
    for pattern in (f".{name}.*.part", f"..{name}.new.part.*.part"):
        for part in out.parent.glob(pattern):
            with contextlib.suppress(OSError), _locked(part):
                shutil.rmtree(part, ignore_errors=True)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
