"""untax: instruction tuning without the alignment tax, as a plugin for Axolotl, mergekit and lm-eval."""

from __future__ import annotations

import pluggy

__version__ = "0.1.0"

hookimpl = pluggy.HookimplMarker("untax")
"""Marks a function of another package as an implementation of one of ``untax.hookspecs``."""

_AXOLOTL_PLUGINS = {
    "DispersePlugin": "untax.disperse.plugin",
    "DeltaPenaltyPlugin": "untax.penalty.plugin",
    "ManifestPlugin": "untax.training.plugin",
}


_PAIRS = ("orpo_pairs", "kto_pairs")
"""Axolotl prompt strategies of ``untax.data.pairs``, which a dataset's ``type:`` names with a query behind."""


def __getattr__(name: str) -> object:
    """Import an Axolotl plugin class or prompt strategy only when Axolotl asks for it."""
    import importlib

    if name.partition("?")[0] in _PAIRS:
        return importlib.import_module("untax.data.pairs").strategy(name)
    if name not in _AXOLOTL_PLUGINS:
        raise AttributeError(f"module 'untax' has no attribute '{name}'")
    try:
        return getattr(importlib.import_module(_AXOLOTL_PLUGINS[name]), name)
    except ImportError as error:
        # Axolotl 0.19 swallows an ImportError and trains without the plugin.
        raise RuntimeError(f"untax.{name} cannot be imported: {error}. Run `untax doctor`.") from error
