"""Keys of a plugin that is not listed, and plugins listed twice."""

from __future__ import annotations

from typing import Any

import pytest

from untax.errors import UntaxError
from untax.training.keys import check_plugins, needed_plugins


def test_needed_plugins() -> None:
    assert needed_plugins({"delta_l1": 0.1, "disperse_cluster": None}) == ["untax.DeltaPenaltyPlugin"]
    assert needed_plugins({"learning_rate": 1}) == []


def test_a_missing_plugin_is_named_with_the_lines_to_add() -> None:
    cfg = {"plugins": ["untax.DispersePlugin"], "disperse_clusters": 4, "delta_l1": 0.1, "delta_l2": None}
    with pytest.raises(UntaxError) as error:
        check_plugins(cfg, where="sparse.yaml")
    said = str(error.value)
    assert "The keys delta_l1 would be ignored" in said
    assert "- untax.DeltaPenaltyPlugin" in said
    assert "sparse.yaml" in said


@pytest.mark.parametrize("name", ["untax.DispersePlugin", "untax.disperse.plugin.DispersePlugin"])
def test_either_name_of_a_plugin_counts(name: str) -> None:
    check_plugins({"plugins": [name, name, "other.Plugin"], "disperse_clusters": 4}, where="a.yaml")


@pytest.mark.parametrize(
    "pair",
    [
        ["untax.DispersePlugin", "untax.disperse.plugin.DispersePlugin"],
        ["untax.penalty.plugin.DeltaPenaltyPlugin", "untax.DeltaPenaltyPlugin"],
        ["untax.ManifestPlugin", "untax.training.plugin.ManifestPlugin"],
    ],
)
def test_a_plugin_under_two_names_is_refused(pair: list[Any]) -> None:
    with pytest.raises(UntaxError, match="listed under two names") as error:
        check_plugins({"plugins": pair}, where="a.yaml")
    assert pair[0] in str(error.value)
    assert pair[1] in str(error.value)
