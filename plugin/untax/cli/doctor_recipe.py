"""What ``untax doctor RECIPE`` finds wrong with an Axolotl YAML: all that Axolotl itself would pass over in silence."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from untax.errors import UntaxError


def recipe_problems(path: Path) -> Iterator[tuple[str, str]]:
    """(what is wrong, how to mend it), one after the other."""
    import yaml

    try:
        cfg = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        yield f"{path} cannot be read: {' '.join(str(error).split())}", "Mend the file."
        return
    if not isinstance(cfg, dict):
        yield f"{path} is not a mapping of keys", "Name an Axolotl YAML."
        return
    for check in _checks():
        try:
            check(cfg, where=path)
        except UntaxError as error:
            yield f"{path}: {' '.join(error.problem.split())}", error.fix or ""  # one line per finding
    yield from _unreadable_files(cfg, path)
    plugins = cfg.get("plugins") or []
    if not isinstance(plugins, list):
        yield f"{path}: plugins is no list: {plugins!r}", "Write one plugin per line, each after `- `."
        return
    for name in plugins:
        reason = unloadable(str(name))
        if reason:
            yield (
                f"{path}: the plugin {name} cannot be loaded ({reason}): Axolotl would stop, or 0.19 train without it",
                "Correct the name, or install its package into this environment (`pip show untax`).",
            )


def _unreadable_files(cfg: dict[str, Any], path: Path) -> Iterator[tuple[str, str]]:
    """Paths are relative to where `axolotl train` is typed, which is the run folder for generated YAMLs."""
    from untax.adapters.statistics import Diagonal
    from untax.training.inputs import FILE_KEYS

    for key in FILE_KEYS:
        value = cfg.get(key)
        if not value:
            continue
        try:
            Diagonal(Path(str(value)))
        except UntaxError as error:
            yield f"{path}: {key}: {value}: {error.problem}", error.fix or ""


def _checks() -> list[Callable[..., Any]]:
    from untax.disperse.settings import read_settings as disperse_settings
    from untax.penalty.reach import check_training
    from untax.penalty.settings import read_settings as penalty_settings
    from untax.training.keys import check_plugins

    def within_reach(cfg: dict[str, Any], *, where: object) -> None:
        if any(cfg.get(key) for key in cfg if str(key).startswith("delta_")):
            check_training(cfg, where=where)

    def dispersal(cfg: dict[str, Any], *, where: object) -> None:
        disperse_settings(cfg, where=where, cluster_needed=False)

    return [check_plugins, dispersal, penalty_settings, within_reach]


def unloadable(plugin: str) -> str | None:
    """Why Axolotl could not load a plugin of this name, or None."""
    module, _, name = plugin.rpartition(".")
    if not module:
        return "a name of the form module.Class is needed"
    for place in (module, f"axolotl.integrations.{module}"):
        try:
            found = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and (place == error.name or place.startswith(f"{error.name}.")):
                continue
            return f"it needs {error.name}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None if hasattr(found, name) else f"{place} has no {name}"
    return f"there is no module {module!r}"
