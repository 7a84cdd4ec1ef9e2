"""The checked-in recipes: regenerated, and validated by Axolotl and mergekit themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from untax.recipes.presets import PRESETS, write_presets

REPOSITORY = Path(__file__).parents[2]
RECIPES = sorted((REPOSITORY / "recipes").rglob("*.yaml"))
TRAININGS = [path for path in RECIPES if path.name != "untax.yaml"]
MERGES = sorted((REPOSITORY / "mergekit_configs").rglob("*.yaml"))


def test_checked_in_files_are_what_the_presets_expand_to(tmp_path: Path):
    write_presets(tmp_path)
    fresh = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.yaml")}
    checked_in = {str(path.relative_to(REPOSITORY)): path.read_text() for path in [*RECIPES, *MERGES]}
    assert fresh == checked_in


def test_each_preset_has_a_readme():
    for name in PRESETS:
        text = (REPOSITORY / "recipes" / name / "README.md").read_text()
        assert f"untax recipe --from recipes/{name}/untax.yaml" in text


@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_axolotl_accepts_each_training(path: Path, axolotl_validated):
    written = yaml.safe_load(path.read_text())
    validated = axolotl_validated(path)
    missing = [key for key in written if validated.get(key) is None and written[key] is not None]
    assert missing == [], "Axolotl would drop these keys"


@pytest.mark.parametrize("path", MERGES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_mergekit_accepts_each_merge(path: Path):
    from mergekit.config import MergeConfiguration
    from mergekit.merge_methods import registry

    config = MergeConfiguration.model_validate(yaml.safe_load(path.read_text()))
    assert registry.get(config.merge_method)
    assert all(model.lora is not None for model in config.referenced_models() if model != config.base_model)
