"""Which plugin a key needs: Axolotl drops the keys of a plugin that is not listed without a word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from untax.errors import UntaxError

PLUGIN_OF_PREFIX = {"disperse_": "untax.DispersePlugin", "delta_": "untax.DeltaPenaltyPlugin"}


def needed_plugins(cfg: Mapping[str, Any]) -> list[str]:
    """The untax plugins that the keys of an Axolotl configuration call for."""
    return [
        plugin
        for prefix, plugin in PLUGIN_OF_PREFIX.items()
        if any(str(key).startswith(prefix) and value is not None for key, value in cfg.items())
    ]


def check_plugins(cfg: Mapping[str, Any], *, where: object) -> None:
    """Refuse a configuration with keys of a plugin that it does not list.

    Raises:
        UntaxError: naming the keys and the missing lines.
    """
    listed = [str(name) for name in cfg.get("plugins") or []]
    _refuse_twice(listed, where)
    classes = {_class_name(name) for name in listed}
    missing = [plugin for plugin in needed_plugins(cfg) if _class_name(plugin) not in classes]
    if missing:
        prefixes = tuple(prefix for prefix, plugin in PLUGIN_OF_PREFIX.items() if plugin in missing)
        keys = [key for key, value in cfg.items() if str(key).startswith(prefixes) and value is not None]
        raise UntaxError(
            f"The keys {', '.join(keys)} would be ignored: {' and '.join(missing)} is not listed under plugins.",
            where=where,
            fix="Add to the YAML:\n           plugins:\n" + "\n".join(f"             - {plugin}" for plugin in missing),
        )


def _refuse_twice(listed: list[str], where: object) -> None:
    ours = sorted({name for name in listed if name.startswith("untax.")})
    for name in ours:
        same = [other for other in ours if _class_name(other) == _class_name(name)]
        if len(same) > 1:
            raise UntaxError(
                f"The same plugin is listed under two names: {' and '.join(same)}.",
                where=f"{where}: plugins",
                fix=f"Keep untax.{_class_name(name)} only.",
            )


def _class_name(plugin: str) -> str:
    return plugin.rsplit(".", 1)[-1]
