"""Who implements the hooks of ``untax.hookspecs``, and the objects they registered by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import pluggy

from untax import hookspecs
from untax.errors import UntaxError, near_names


@functools.cache
def manager() -> pluggy.PluginManager:
    """The plugin manager with every installed implementation loaded.

    Raises:
        UntaxError: an implementation cannot be imported, or names a hook that does not exist.
    """
    plugins = pluggy.PluginManager("untax")
    plugins.add_hookspecs(hookspecs)
    try:
        plugins.load_setuptools_entrypoints("untax")
        plugins.check_pending()
    except pluggy.PluginValidationError as error:
        raise UntaxError(
            f"A plugin implements a hook that untax does not have: {error}.",
            where=getattr(error.plugin, "__name__", error.plugin),
            fix=f"Compare it with the hooks and their arguments in untax.hookspecs: {', '.join(hook_names())}.",
        ) from error
    except ImportError as error:
        raise UntaxError(
            f"A plugin of untax cannot be imported: {error}.",
            where="an entry point of group untax",
            fix="Update or uninstall the package it belongs to.",
        ) from error
    return plugins


def hook_names() -> list[str]:
    """The names of all hooks, sorted."""
    return sorted(name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), "untax_spec"))


def registry(hook: str) -> dict[str, Any]:
    """Everything that was registered through ``hook``, by name.

    Raises:
        UntaxError: two plugins register the same name.
    """
    merged: dict[str, Any] = {}
    owners: dict[str, str] = {}
    caller = getattr(manager().hook, hook)
    for implementation in caller.get_hookimpls():
        provided: Mapping[str, Any] = implementation.function()
        for name, value in provided.items():
            if name in merged:
                raise UntaxError(
                    f"Two plugins register '{name}' through {hook}.",
                    where=f"{owners[name]} and {implementation.plugin_name}",
                    fix="Uninstall one or rename its entry.",
                )
            merged[name], owners[name] = value, implementation.plugin_name
    if not merged:
        raise UntaxError(
            f"Nothing is registered for {hook}.", fix="Install untax itself, not only its source: `pip install -e .`."
        )
    return merged


def named(hook: str, name: str, *, where: object) -> Any:
    """The object registered as ``name`` through ``hook``.

    Raises:
        UntaxError: there is none; near names are suggested.
    """
    found = registry(hook)
    if name not in found:
        raise UntaxError(
            f"Unknown name '{name}'. {near_names(name, list(found))}", where=where, fix="Use one of the known names."
        )
    return found[name]


def call_with_known(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a registered function with those of the keyword arguments that its signature names, or all for ``**kwargs``.

    So a function need not take what it does not use, and new arguments break no plugin.

    >>> call_with_known(lambda corpus, seed: (corpus, seed), "rows", seed=1, cache="here")
    ('rows', 1)
    """
    return function(*args, **known_keywords(function, len(args), kwargs))


def known_keywords(function: Callable[..., Any], positional: int, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the keywords that a function names beside its positional arguments; all if it takes ``**kwargs``."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        # Some functions written in C do not say what they take.
        return dict(keywords)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(keywords)
    first = [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    by_name = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    return {name: value for name, value in keywords.items() if name in by_name - set(first[:positional])}
