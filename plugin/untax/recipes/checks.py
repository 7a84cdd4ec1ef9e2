"""What a recipe's values may be, beyond their types: each check gives its problems as sentences."""

from __future__ import annotations

import os
import re
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
SIZES = {
    "lora_r": "the rank of the adapter, 16 say",
    "lora_alpha": "one, the same as lora_r say (the delta is multiplied by lora_alpha / lora_r)",
}
"""What an adapter cannot be made without, and what it is."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
DATA_SUFFIXES = (".json", ".jsonl", ".jsonl.gz", ".parquet", ".csv", ".arrow", ".txt")
OWNED = {
    "output_dir": "the plan names the folders",
    "dataset_prepared_path": "the plan names the folders",
    "datasets": "name them as sft and preference at the top of the recipe",
    "base_model": "name it as base at the top of the recipe",
    "seed": "name it as seed at the top of the recipe",
    "rl": "name the method as preference of an arm, or the recipe's own as training.preference.rl",
}
"""Axolotl keys that the plan writes, and where the recipe has them."""
OWNED_PREFIXES = {
    "disperse_": "set it at an arm of kind dtm, or first_turn at the top of the recipe",
    "delta_": "set it at an arm: delta_l1 of paft, delta_l2 of l2, delta_ewc of ewc",
}
FREE_PENALTY_KEYS = ("delta_target", "delta_modules", "delta_schedule", "delta_base", "delta_log_steps")
"""How the penalty works, which the recipe may say for every training that has one; how strong it is, the arms say."""


def refuse(problems: Sequence[str]) -> None:
    """One error of several lines; each becomes a problem of its own.

    Raises:
        ValueError: there are problems.
    """
    if problems:
        raise ValueError("\n".join(problems))


def unknown_name(hook: str, name: str) -> list[str]:
    """A problem unless something is registered as ``name`` through ``hook``."""
    known = list(registry(hook))
    return [] if name in known else [f"unknown name '{name}'. {near_names(name, known)}"]


def twice(values: Sequence[Any]) -> list[str]:
    """A problem for each value that comes again; numbers that a folder's name writes alike count as one."""
    shown = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return [f"{value} is named twice" for value in dict.fromkeys(shown) if shown.count(value) > 1]


def owned_keys(keys: dict[str, Any], *, free: Sequence[str] = FREE_PENALTY_KEYS) -> list[str]:
    """A problem for each key of a training that the plan owns, and for a list of plugins that is none.

    Args:
        keys: Axolotl keys.
        free: keys that are allowed here although the plan owns the like.
    """
    problems = []
    for key in keys:
        if key in free:
            continue
        prefixed = next((why for prefix, why in OWNED_PREFIXES.items() if key.startswith(prefix)), None)
        why = OWNED.get(key, prefixed)
        if why is not None:
            problems.append(f"{key} belongs to the plan: {why}")
    plugins = keys.get("plugins") or []
    if not isinstance(plugins, list) or not all(isinstance(plugin, str) for plugin in plugins):
        return [*problems, f"plugins is a list of names, not {plugins!r}"]
    own = [plugin for plugin in plugins if plugin.startswith("untax.") and plugin not in OWN_PLUGINS]
    return problems + [f"plugins: the plan adds untax's own, and {plugin} is none of them" for plugin in own]


def soup_problems(runs: Sequence[dict[str, Any]]) -> list[str]:
    """A problem for each run of a soup with a key of the plan, and for two runs that are the same."""
    problems = [
        f"run {index}: {problem}" for index, keys in enumerate(runs) for problem in owned_keys(keys, free=("seed",))
    ]
    for index, keys in enumerate(runs):
        if keys in runs[:index]:
            problems.append(f"run {index} is the same as run {runs.index(keys)}: a soup mixes different runs")
    return problems


def adapter_problems(name: str, keys: dict[str, Any], arms: Sequence[str]) -> list[str]:
    """A problem if a training's result would be no adapter.

    Args:
        name: what the training's keys are called in the recipe.
        keys: its Axolotl keys.
        arms: the arms that need it.
    """
    if not arms or keys.get("adapter") in ADAPTERS:
        return []
    return [
        f"{name}.adapter: name lora or qlora (it is {_shown(keys.get('adapter'))}); "
        f"without an adapter the result could not be merged as base + adapter ({', '.join(arms)})"
    ]


def size_problems(keys: dict[str, Any]) -> list[str]:
    """A problem for each key without which PEFT makes no adapter, and for which Axolotl has no default."""
    # An adapter to go on from has its own.
    if keys.get("adapter") not in ADAPTERS or keys.get("lora_model_dir"):
        return []
    missing = [key for key in SIZES if keys.get(key) is None]
    return [f"{key}: it is missing, and Axolotl has no default for it: name {SIZES[key]}" for key in missing]


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)


def base_problems(base: str, folder: Path | None, *, look: bool = False) -> list[str]:
    """A problem if ``base`` is empty, no name that mergekit can read, or a file; with ``look`` if it is not there."""
    if not base.strip():
        return ["it is empty: name a model folder or a hub id"]
    if "+" in base or "@" in base:
        return [f"mergekit reads '+' and '@' as separators, so it cannot read {base}: rename or link the folder"]
    if folder is not None and os.path.isfile(below(folder, base)):
        return [f"{base} is a file: name the folder of the model"]
    if look and folder is not None and _is_missing(base, folder):
        return [f"there is no {base} (taken from {folder}), and it is no hub id"]
    return []


def entry_problems(entries: Sequence[dict[str, Any]], folder: Path | None, *, look: bool = False) -> list[str]:
    """A problem for each dataset entry without a path, or whose local file is empty; with ``look`` if it is missing."""
    problems = []
    for index, entry in enumerate(entries):
        path = entry.get("path")
        if path is None or path == "":
            problems.append(f"entry {index} has no path")
        elif not isinstance(path, str):
            problems.append(f"entry {index}: path is text, not {path!r}")
        elif folder is not None and _is_empty_file(below(folder, path)):
            problems.append(f"entry {index}: the file {path} is empty")
        elif look and folder is not None and _is_missing(path, folder):
            problems.append(f"entry {index}: there is no {path} (taken from {folder}), and it is no hub id")
    return problems


def _is_missing(path: str, folder: Path) -> bool:
    return is_local(path) and not os.path.exists(below(folder, path))


def _is_empty_file(path: Path) -> bool:
    return os.path.isfile(path) and not os.path.getsize(path)


def is_local(path: str) -> bool:
    """Whether a path can only be a local one: no URL, and no name that a hub could have."""
    return "://" not in path and (not HUB_ID.fullmatch(path) or path.endswith(DATA_SUFFIXES))


def below(folder: Path, path: str) -> Path:
    """Where ``path`` leads when it is taken from ``folder``, which need not be there yet."""
    return Path(os.path.realpath(os.path.join(os.path.realpath(folder), path)))
