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
        if any(key.startswith(prefix) and value is not None for key, value in cfg.items())
    ]


def check_plugins(cfg: Mapping[str, Any], *, where: object) -> None:
    """Refuse a configuration with keys of a plugin that it does not list.

    Raises:
        UntaxError: naming the keys and the missing lines.
    """
    listed = {str(name).rsplit(".", 1)[-1] for name in cfg.get("plugins") or []}
    missing = [plugin for plugin in needed_plugins(cfg) if plugin.rsplit(".", 1)[-1] not in listed]
    if missing:
        keys = [key for key in cfg for prefix, plugin in PLUGIN_OF_PREFIX.items() if plugin in missing and key.startswith(prefix)]
        raise UntaxError(
            f"The keys {', '.join(keys)} would be ignored: {' and '.join(missing)} is not listed under plugins.",
            where=where,
            fix="Add to the YAML:\n           plugins:\n" + "\n".join(f"             - {plugin}" for plugin in missing),
        )
