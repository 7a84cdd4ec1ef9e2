"""Hooks: built-ins come through the same door as outsiders, and nothing is taken silently."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest

import untax
from untax import plugins
from untax.errors import UntaxError
from untax.plugins import hook_names, manager, named, registry


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    manager.cache_clear()
    yield
    manager.cache_clear()


def outsider(**hooks: Any) -> SimpleNamespace:
    return SimpleNamespace(**{name: untax.hookimpl(function) for name, function in hooks.items()})


def loading(monkeypatch: pytest.MonkeyPatch, plugin: Any = None, error: Exception | None = None) -> None:
    load = pluggy.PluginManager.load_setuptools_entrypoints

    def with_outsider(self: pluggy.PluginManager, group: str, name: str | None = None) -> int:
        if error:
            raise error
        self.register(plugin, "outsider")
        return load(self, group, name)

    monkeypatch.setattr(pluggy.PluginManager, "load_setuptools_entrypoints", with_outsider)


def test_built_ins() -> None:
    assert hook_names() == [
        "delta_penalties",
        "disperse_embedders",
        "disperse_strategies",
        "eval_suites",
        "merge_methods",
    ]
    assert set(registry("disperse_strategies")) == {"random", "kmeans", "column"}
    assert set(registry("disperse_embedders")) == {"tfidf", "sentence-transformers", "llm", "llm-last"}
    assert set(registry("delta_penalties")) == {"delta_l1", "delta_l2", "delta_ewc"}
    stock = {"linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp", "nuslerp"}
    assert set(registry("merge_methods")) == stock | {"fisher", "regmean", "ties_global", "dare_exact"}
    for hook in hook_names():
        assert registry(hook)
        assert getattr(manager().hook, hook).spec.function.__doc__


def test_an_outsider_adds_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def disperse_strategies() -> dict[str, Any]:
        return {"alternate": len}

    loading(monkeypatch, outsider(disperse_strategies=disperse_strategies))
    assert named("disperse_strategies", "alternate", where="") is len
    assert "random" in registry("disperse_strategies")


def test_two_plugins_with_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def disperse_strategies() -> dict[str, Any]:
        return {"random": len}

    loading(monkeypatch, outsider(disperse_strategies=disperse_strategies))
    with pytest.raises(UntaxError, match="Two plugins register 'random'"):
        registry("disperse_strategies")


def test_a_misspelled_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    def disperse_strategy() -> dict[str, Any]:
        return {}

    loading(monkeypatch, outsider(disperse_strategy=disperse_strategy))
    with pytest.raises(UntaxError, match="disperse_strategy"):
        manager()


def test_a_plugin_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    loading(monkeypatch, error=ImportError("no module named 'its_dependency'"))
    with pytest.raises(UntaxError, match="its_dependency"):
        manager()


def test_an_unknown_name() -> None:
    with pytest.raises(UntaxError, match="Did you mean 'random'") as error:
        named("disperse_strategies", "randm", where="a.yaml: disperse_strategy")
    assert "a.yaml" in str(error.value)


def test_nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pluggy.PluginManager, "load_setuptools_entrypoints", lambda self, group, name=None: 0)
    with pytest.raises(UntaxError, match="Nothing is registered"):
        registry("delta_penalties")


def test_axolotl_finds_the_plugins_by_their_short_names() -> None:
    for name in ("DispersePlugin", "DeltaPenaltyPlugin", "ManifestPlugin"):
        assert getattr(untax, name).__name__ == name
    with pytest.raises(AttributeError):
        untax.NoSuchPlugin  # noqa: B018


def test_a_plugin_that_fails_to_import_is_no_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Axolotl 0.19 would swallow an ImportError and train without the plugin."""
    monkeypatch.setitem(untax._AXOLOTL_PLUGINS, "DispersePlugin", "untax.no_such_module")
    with pytest.raises(RuntimeError, match="untax doctor"):
        untax.DispersePlugin  # noqa: B018
    assert plugins
