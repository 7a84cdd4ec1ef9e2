"""Paths as a run folder sees them: local ones relative to it, hub ids as they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from untax.errors import UntaxError
from untax.recipes.checks import is_local
from untax.recipes.spec import RunSpec


def seen_from_run(path: str, folder: Path, *, where: object) -> str:
    """A path that the user typed, as seen from the run folder; a hub id or URL stays as it is.

    Raises:
        UntaxError: it is empty, or there is no such file, and it cannot be a hub id.
    """
    if not path.strip():
        raise UntaxError("The name is empty.", where=where, fix="Name a file, a folder or a hub id.")
    if Path(path).exists():
        return explicit(_relative(path, folder))
    if not is_local(path):
        return path
    raise UntaxError(
        "There is no such file or folder, and it is no hub id.",
        where=f"{where} {path}",
        fix="Check the path; it is taken from the present folder.",
    )


def embedder_seen_from_run(embedder: str, folder: Path, *, start: Path = Path()) -> str:
    """``llm:models/small`` as seen from the run folder, if there is such a folder below ``start``; else as it is."""
    kind, _, argument = embedder.partition(":")
    there = bool(argument) and (start / argument).exists()
    return f"{kind}:{explicit(_relative(start / argument, folder))}" if there else embedder


def _relative(path: str | Path, folder: Path) -> str:
    """``path`` from ``folder``, with links as they were typed: a link's name can be readable where its target's is not.

    A tool that climbs out of a linked folder comes out beside the link's target, so each result is tried.
    """
    target, start = os.path.realpath(path), os.path.realpath(folder)
    typed = os.path.abspath(path)
    for found in (os.path.relpath(typed, os.path.abspath(folder)), os.path.relpath(typed, start)):
        if os.path.realpath(os.path.join(start, found)) == target:
            return found
    return os.path.relpath(target, start)


def explicit(path: str) -> str:
    """A relative path that no tool takes for a hub id."""
    return path if path.startswith((".", "/")) else f"./{path}"


def rebased(spec: RunSpec, old: Path, new: Path) -> RunSpec:
    """A spec of folder ``old`` with its local paths as seen from folder ``new``."""
    if old.resolve() == new.resolve():
        return spec

    def moved(path: str) -> str:
        return explicit(_relative(old / path, new)) if (old / path).exists() else path

    def entries(listed: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        return None if listed is None else [{**entry, "path": moved(entry["path"])} for entry in listed]

    def pairs(listed: Any) -> Any:
        return {name: entries(each) for name, each in listed.items()} if isinstance(listed, dict) else entries(listed)

    def arm(settings: Any) -> Any:
        files = ("fisher", "statistics")
        found = {name: moved(getattr(settings, name)) for name in files if getattr(settings, name, None)}
        if getattr(settings, "embedder", None):
            found["embedder"] = embedder_seen_from_run(settings.embedder, new, start=old)
        return settings.model_copy(update=found)

    rows = {"sft": entries(spec.sft), "preference": pairs(spec.preference), "replay": entries(spec.replay)}
    arms = {name: arm(settings) for name, settings in spec.arms.items()}
    return spec.model_copy(update={"base": moved(spec.base), **rows, "arms": arms})
