"""What Axolotl's schema refuses or drops, in YAMLs that were edited by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from untax.check.check import check_folder

Make = Callable[..., Path]


def fails(folder: Path) -> list[tuple[str, str]]:
    """(where, text) of all that would fail."""
    found = check_folder(folder, offline=True).findings
    return [(finding.where, finding.text) for finding in found if finding.state == "fail"]


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "recipes" / f"{name}.yaml"
    keys = yaml.safe_load(path.read_text())
    change(keys)
    path.write_text(yaml.safe_dump(keys))


def test_keys_that_axolotl_would_drop(run_folder: Make) -> None:
    """At the top, in a dataset entry, and in every training that a pass-through reaches."""
    folder = run_folder(axolotl={"flash_attentoin": True})
    edit(folder, "cluster-0", lambda keys: keys["datasets"][0].update(fielld="x"))
    found = dict(fails(folder))
    for name in ("cluster-0", "cluster-1", "sft-sparse", "dpo"):
        said = found[f"recipes/{name}.yaml: flash_attentoin"]
        assert said.endswith("drop it without a word. Did you mean 'flash_attention'?")
    assert "recipes/cluster-0.yaml: datasets.0.fielld" in found
    assert len(found) == 5


def test_values_that_axolotl_refuses_hide_no_unknown_key(run_folder: Make) -> None:
    folder = run_folder()
    edit(
        folder, "sft-sparse", lambda keys: keys.update(micro_batch_size="four", learnin_rate=keys.pop("learning_rate"))
    )
    found = dict(fails(folder))
    assert "valid integer" in found["recipes/sft-sparse.yaml: micro_batch_size"]
    assert "'learning_rate'" in found["recipes/sft-sparse.yaml: learnin_rate"]
    assert "required" in found["recipes/sft-sparse.yaml: learning_rate"]
    assert len(found) == 3


@pytest.mark.parametrize("name", ["no.such.Plugin", "axolotl.NoPlugin"])
def test_a_plugin_that_cannot_be_loaded(run_folder: Make, name: str) -> None:
    folder = run_folder(nodes={"dpo": {"axolotl": {"plugins": [name]}}})
    assert [where for where, _ in fails(folder)] == ["recipes/dpo.yaml: plugins"]


def test_untaxs_own_keys_are_known(run_folder: Make) -> None:
    """Keys of plugins are part of the schema only with their plugins."""
    assert fails(run_folder()) == []


@pytest.mark.parametrize(
    ("key", "value", "meant"), [("optimizer", "adamw_tosch", "adamw_torch"), ("lr_scheduler", "cosin", "cosine")]
)
def test_names_that_only_the_trainer_would_refuse(run_folder: Make, key: str, value: str, meant: str) -> None:
    folder = run_folder(nodes={"dpo": {"axolotl": {key: value}}})
    [(where, text)] = fails(folder)
    assert where == f"recipes/dpo.yaml: {key}"
    assert f"'{value}'. Did you mean '{meant}'?" in text


@pytest.mark.parametrize(
    "keys",
    [{"optimizer": "muon"}, {"optimizer": "paged_adamw_8bit"}, {"lr_scheduler": "rex"}, {"lr_scheduler": "linear"}],
)
def test_names_that_the_trainer_knows(run_folder: Make, keys: dict[str, str]) -> None:
    assert fails(run_folder(nodes={"sft-sparse": {"axolotl": keys}})) == []
