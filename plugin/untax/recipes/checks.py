"""What a recipe's values may be, beyond their types: each check gives its problems as sentences."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from untax.errors import near_names
from untax.plugins import registry

MANIFEST = "untax.ManifestPlugin"
DISPERSE = "untax.DispersePlugin"
PENALTY = "untax.DeltaPenaltyPlugin"
OWN_PLUGINS = (MANIFEST, DISPERSE, PENALTY)
ADAPTERS = ("lora", "qlora")
OWNED = {
    "output_dir": "the plan names the folders",
    "dataset_prepared_path": "the plan names the folders",
    "datasets": "name them as sft and preference at the top of the recipe",
    "base_model": "name it as base at the top of the recipe",
    "seed": "name it as seed at the top of the recipe",
}
"""Axolotl keys that the plan writes, and where the recipe has them."""
OWNED_PREFIXES = {
    "disperse_": "set arms.dtm and first_turn instead",
    "delta_": "set arms.paft.delta_l1 instead",
}


def unknown_name(hook: str, name: str) -> list[str]:
    """A problem unless something is registered as ``name`` through ``hook``."""
    known = list(registry(hook))
    return [] if name in known else [f"unknown name '{name}'. {near_names(name, known)}"]


def twice(values: Sequence[Any]) -> list[str]:
    """A problem for each value that comes again; numbers that a folder's name writes alike count as one."""
    shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return [f"{value} is named twice" for value in dict.fromkeys(shown) if shown.count(value) > 1]


def owned_keys(keys: dict[str, Any]) -> list[str]:
    """A problem for each key of a training that the plan owns, and for a list of plugins that is none."""
    problems = []
    for key in keys:
        prefixed = next((why for prefix, why in OWNED_PREFIXES.items() if key.startswith(prefix)), None)
        why = OWNED.get(key, prefixed)
        if why is not None:
            problems.append(f"{key} belongs to the plan: {why}")
    plugins = keys.get("plugins") or []
    if not isinstance(plugins, list) or not all(isinstance(plugin, str) for plugin in plugins):
        return [*problems, f"plugins is a list of names, not {plugins!r}"]
    own = [plugin for plugin in plugins if plugin.startswith("untax.") and plugin not in OWN_PLUGINS]
    return problems + [f"plugins: the plan adds untax's own, and {plugin} is none of them" for plugin in own]


def unmergeable(training: Any, *, sft: Sequence[str], preference: Sequence[str]) -> list[str]:
    """A problem for each key without which a training's result is no adapter, or no preference training.

    Args:
        training: the spec's ``training``.
        sft: the arms that train on instruction data.
        preference: the arms that train on preference pairs.
    """
    problems = []
    for kind, keys, arms in (("sft", training.sft, sft), ("preference", training.preference, preference)):
        if arms and keys.get("adapter") not in ADAPTERS:
            problems.append(
                f"training.{kind}.adapter: name lora or qlora (it is {_shown(keys.get('adapter'))}); "
                f"without an adapter the result could not be merged as base + adapter ({', '.join(arms)})"
            )
    rl = training.preference.get("rl")
    if preference and (not isinstance(rl, str) or not rl.replace("_", "").isalnum()):
        problems.append(
            f"training.preference.rl: name the method, such as dpo (it is {_shown(rl)}); "
            f"without it this would be no preference training ({', '.join(preference)})"
        )
    return problems


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)


def base_problems(base: str, folder: Path | None) -> list[str]:
    """A problem if ``base`` is empty, no name that mergekit can read, or a file."""
    if not base.strip():
        return ["it is empty: name a model folder or a hub id"]
    if "+" in base or "@" in base:
        return [f"mergekit reads '+' and '@' as separators, so it cannot read {base}: rename or link the folder"]
    if folder is not None and os.path.isfile(below(folder, base)):
        return [f"{base} is a file: name the folder of the model"]
    return []


def entry_problems(entries: Sequence[dict[str, Any]], folder: Path | None) -> list[str]:
    """A problem for each dataset entry without a path, or whose local file is empty."""
    problems = []
    for index, entry in enumerate(entries):
        path = entry.get("path")
        if path is None or path == "":
            problems.append(f"entry {index} has no path")
        elif not isinstance(path, str):
            problems.append(f"entry {index}: path is text, not {path!r}")
        elif folder is not None and _is_empty_file(below(folder, path)):
            problems.append(f"entry {index}: the file {path} is empty")
    return problems


def _is_empty_file(path: Path) -> bool:
    return os.path.isfile(path) and not os.path.getsize(path)


def below(folder: Path, path: str) -> Path:
    """Where ``path`` leads when it is taken from ``folder``, which need not be there yet."""
    return Path(os.path.realpath(os.path.join(os.path.realpath(folder), path)))
