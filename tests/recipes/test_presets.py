"""The checked-in recipes: regenerated, and validated by Axolotl and mergekit themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from untax.demo.demo import demo_spec
from untax.recipes.presets import PRESETS, write_presets
from untax.recipes.spec import DTM_MERGES, PAFT_MERGES, check_spec
from untax.recipes.write import write_run_folder

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
    assert_mergekit_accepts(path)


def test_mergekit_accepts_every_merge_of_a_run_folder(tmp_path: Path):
    """Every method of every arm, scaled and not."""
    content = demo_spec().model_dump(exclude_none=True)
    paft_merges = [method for method in PAFT_MERGES if method != "slerp"]
    arms = {
        **content["arms"],
        "dtm": {"clusters": 3, "merge": list(DTM_MERGES), "scales": [1, 0.5]},
        "paft": {"merge": paft_merges, "scales": [1, 0.5]},
        "parallel": {"merge": list(PAFT_MERGES)},
    }
    write_run_folder(check_spec({**content, "arms": arms}, where="test"), tmp_path)
    configs = sorted((tmp_path / "mergekit_configs").glob("*.yaml"))
    assert len(configs) == 4 + 8 + 8 + 5 + 1
    for path in configs:
        assert_mergekit_accepts(path)


def assert_mergekit_accepts(path: Path) -> None:
    """The schema, the method, and its parameters: none missing, none that mergekit would ignore."""
    from untax.merge import mergekit_yaml
    from untax.merge.parameters import check_parameters

    mergekit_yaml.import_quietly()
    config = mergekit_yaml.read_config(yaml.safe_load(path.read_text()), where=path)
    assert check_parameters(config, where=path) == []
