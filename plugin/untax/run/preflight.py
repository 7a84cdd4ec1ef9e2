"""What can be known before anything runs: every YAML is there and right, and what it reads exists or will be made."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from untax.disperse.settings import read_settings as disperse_settings
from untax.errors import UntaxError
from untax.evaluate.suites import suite_folder
from untax.penalty.settings import read_settings as penalty_settings
from untax.recipes.checks import is_local, size_problems
from untax.recipes.graph import Node, Plan
from untax.recipes.spec import SPEC_NAME
from untax.run.reads import as_read, maker
from untax.run.yamls import read_yaml
from untax.training.inputs import FILE_KEYS
from untax.training.keys import check_plugins


def check_files(expanded: Plan, folder: Path, suite: str | None) -> None:
    """All that can be known before anything runs: every YAML is there, right, and reads local data that exists or that
    the run makes before.

    Raises:
        UntaxError: all that is wrong, each with its file and key; or nodes that wait for each other.
    """
    problems: list[str] = []
    if suite is not None:
        _collect(problems, SPEC_NAME, lambda: suite_folder(suite))
    for node in expanded.nodes:
        if node.config is not None:
            content = read_yaml(folder / node.config)
            problems += _training_problems(node, content, folder, expanded) if node.kind == "train" else []
    if problems:
        raise UntaxError(
            "This run cannot start:\n  - " + "\n  - ".join(problems),
            where=folder,
            fix="Correct these keys (relative paths start at the run folder).",
        )
    as_read(expanded, folder)


def _training_problems(node: Node, content: dict[str, Any], folder: Path, expanded: Plan) -> list[str]:
    entries = content.get("datasets") or []
    named = [("base_model", content.get("base_model"))]
    named += [("datasets", entry.get("path")) for entry in entries if isinstance(entry, dict)]
    named += [(key, content[key]) for key in FILE_KEYS if content.get(key)]
    problems = [
        f"{node.config}: {key}: {reason}"
        for key, path in named
        if maker(str(path), expanded.nodes) is None
        and (reason := _unreadable(str(path), folder, file=key in FILE_KEYS))
    ]
    if content.get("output_dir") != node.outputs[0]:
        problems.append(
            f"{node.config}: output_dir is {content.get('output_dir')}, and the run needs {node.outputs[0]}"
        )
    if not any(str(plugin).startswith("untax.") for plugin in content.get("plugins") or []):
        problems.append(f"{node.config}: plugins lists none of untax's, so nothing would prove the training")
    problems += [f"{node.config}: {problem}" for problem in size_problems(content)]
    for check in (check_plugins, disperse_settings, penalty_settings):
        _collect(problems, str(node.config), functools.partial(check, content, where=node.config))
    return problems


def _unreadable(path: str, folder: Path, *, file: bool = False) -> str | None:
    place = folder / path
    if place.is_file() and place.stat().st_size == 0:
        return f"{path} is empty"
    # `outputs/x` could be a hub id, and is none here; what a key for a file names never is one.
    local = file or is_local(path) or path.removeprefix("./").startswith("outputs/")
    return f"there is no {path}" if local and not place.exists() else None


def _collect(problems: list[str], where: str, check: Callable[[], object]) -> None:
    try:
        check()
    except UntaxError as error:
        problems.append(f"{where}: {error.problem}")


def edited(expanded: Plan, folder: Path) -> list[str]:
    """The YAMLs that are not what the spec expands to: edited by hand, or older than the spec."""
    return [name for name, text in expanded.files.items() if read_yaml(folder / name) != yaml.safe_load(text)]


def edited_note(names: list[str]) -> str:
    """What a run does with such YAMLs."""
    return (
        f"These differ from what {SPEC_NAME} expands to and are run as they stand: {', '.join(names)}\n"
        f"(In the run folder `untax recipe --from {SPEC_NAME} --diff` shows how. Without --diff it writes those that "
        "are older than the recipe, and with --force also those edited by hand.)"
    )
