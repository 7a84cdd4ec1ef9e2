"""Every path that the YAMLs of a run folder name: is there such a file?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from untax.check.findings import Finding
from untax.check.trainings import Training
from untax.recipes.checks import is_local
from untax.recipes.graph import Plan
from untax.run.reads import maker
from untax.training.inputs import FILE_KEYS

MODEL_KEYS = ("base_model", "base_model_config", "tokenizer_config")
DATA_KEYS = ("datasets", "test_datasets")


def path_findings(trainings: list[Training], plan: Plan, folder: Path) -> list[Finding]:
    """A failure for each path without a file; each once, with all the YAMLs that name it."""
    places: dict[tuple[str, str], list[str]] = {}
    for training in trainings:
        for key, path in _named(training.keys):
            reason = _reason(key, path, folder)
            if reason and maker(path, plan.nodes) is None:
                places.setdefault((key, reason), []).append(training.config)
    return [
        Finding("fail", f"{', '.join(configs)}: {key}", reason, "Correct the path; it starts at the run folder.")
        for (key, reason), configs in places.items()
    ]


def _named(keys: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, path) of all that is, or may be, a path."""
    for key in (*MODEL_KEYS, *FILE_KEYS):
        if keys.get(key):
            yield key, str(keys[key])
    yield from _template(keys, "")
    for key in DATA_KEYS:
        for index, entry in enumerate(keys.get(key) or []):
            if not isinstance(entry, dict):
                continue
            if entry.get("path"):
                yield f"{key}, entry {index}, path", str(entry["path"])
            for file in _files(entry.get("data_files")):
                yield f"{key}, entry {index}, data_files", file
            yield from _template(entry, f"{key}, entry {index}, ")


def _template(keys: dict[str, Any], before: str) -> Iterator[tuple[str, str]]:
    """A template that is the name of a file; one that is the template itself has braces."""
    template = keys.get("chat_template_jinja")
    if isinstance(template, str) and "{" not in template:
        yield f"{before}chat_template_jinja", template


def _files(named: Any) -> list[str]:
    if isinstance(named, dict):
        return [file for value in named.values() for file in _files(value)]
    if isinstance(named, list):
        return [file for value in named for file in _files(value)]
    return [str(named)] if named else []


def _reason(key: str, path: str, folder: Path) -> str | None:
    place = folder / path
    if place.is_file():
        return f"{path} is empty" if not place.stat().st_size else None
    if place.is_dir():
        lacking = key == "base_model" and not (place / "config.json").is_file()
        return f"{path} has no config.json: it is no model folder" if lacking else None
    # `outputs/x` could be a hub id, and is none here.
    here = is_local(path) or path.removeprefix("./").startswith("outputs/") or "jinja" in key
    return f"there is no {path}" if here and not is_pattern(path) else None


def is_pattern(path: str) -> bool:
    """Whether a path has wildcards, and so names what is found when it is read."""
    return any(sign in path for sign in "*?[")
