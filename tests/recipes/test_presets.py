"""The checked-in recipes: regenerated, and validated by Axolotl and mergekit themselves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from untax.demo.demo import demo_spec
from untax.recipes import presets
from untax.recipes.merge_choice import DTM_MERGES, PAFT_MERGES
from untax.recipes.presets import CATALOGUE, PRESETS, preset, write_presets
from untax.recipes.spec import RunSpec, check_spec
from untax.recipes.write import write_run_folder

REPOSITORY = Path(__file__).parents[2]
RECIPES = sorted((REPOSITORY / "recipes").rglob("*.yaml"))
TRAININGS = [path for path in RECIPES if path.name != "untax.yaml"]
MERGES = sorted((REPOSITORY / "mergekit_configs").rglob("*.yaml"))
# Edited by hand, beside what is generated.
BY_HAND = {"recipes/dtm-llama2-7b-baize/rows.py"}


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def test_checked_in_files_are_what_the_presets_expand_to(tmp_path: Path):
    write_presets(tmp_path)
    fresh = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    folders = [REPOSITORY / "recipes", REPOSITORY / "mergekit_configs"]
    found = [
        path for folder in folders for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    checked_in = {str(path.relative_to(REPOSITORY)): path.read_text() for path in found}
    assert set(checked_in) - set(fresh) == BY_HAND
    assert {name: text for name, text in checked_in.items() if name not in BY_HAND} == fresh


def test_yamls_that_a_preset_no_longer_expands_to_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(presets, "CATALOGUE", {name: CATALOGUE[name] for name in ["dtm-llama2-7b-lima"]})
    stale = tmp_path / "mergekit_configs/dtm-llama2-7b-lima/ties.yaml"
    other = tmp_path / "mergekit_configs/mine/ties.yaml"
    for path in (stale, other):
        path.parent.mkdir(parents=True)
        path.write_text("merge_method: ties\n")
    write_presets(tmp_path)
    assert not stale.exists()
    assert other.exists()


@pytest.mark.parametrize(
    ("name", "arms"),
    [
        ("dtm-llama2-7b-tulu2", ["vanilla", "l2", "ewc", "replay", "soup", "dtm"]),
        ("paft-mistral-7b-zephyr", ["individual", "sequential", "parallel", "paft"]),
        ("paft-llama3-8b-zephyr-orpo", ["sequential", "parallel", "paft"]),
        ("qwen3-8b-tulu3", ["vanilla", "dtm", "paft", "dtm-paft"]),
    ],
)
def test_arms_are_the_rows_of_the_tables(name: str, arms: list[str]):
    assert list(PRESETS[name]["arms"]) == arms


def test_the_clustering_rows_of_table_2():
    arms = preset("dtm-llama2-7b-tulu2-clustering").arms
    rows = {(str(arm.embedder), arm.text) for arm in arms.values() if getattr(arm, "strategy", "") == "kmeans"}
    models = ["sentence-transformers:all-MiniLM-L6-v2", "sentence-transformers:all-mpnet-base-v2"]
    assert rows == {(model, text) for model in models for text in ("instruction", "response", "both")}


def test_the_numbers_of_sub_models_of_figure_11():
    arms = preset("dtm-llama2-7b-tulu2-k").arms
    assert [arm.clusters for arm in arms.values() if hasattr(arm, "clusters")] == [2, 3, 4, 5, 6]


def test_no_yaml_has_aliases():
    """They hide what a value is from whoever reads or edits the file."""
    assert [str(path) for path in RECIPES if re.search(r"[:-] [&*]id\d", path.read_text())] == []


def test_the_checked_in_recipe_is_the_preset():
    for name, content in PRESETS.items():
        text = (REPOSITORY / "recipes" / name / "untax.yaml").read_text()
        assert RunSpec.model_validate(yaml.safe_load(text)) == RunSpec.model_validate(content), name


@pytest.mark.parametrize("name", ["dtm-llama2-7b-tulu2", "paft-llama3-8b-zephyr-orpo", "smollm2-135m-smoltalk"])
def test_a_preset_can_be_expanded_anywhere(name: str, tmp_path: Path):
    """With the same YAMLs but for the folders in them."""
    written = write_run_folder(preset(name), tmp_path)
    here = {Path(path).name: text for path, text in written.plan.files.items()}
    there = {path.name: path.read_text() for path in [*TRAININGS, *MERGES] if path.parent.name == name}
    assert {path: _anywhere(text) for path, text in there.items()} == {
        path: _anywhere(text) for path, text in here.items()
    }


def _anywhere(text: str) -> str:
    """A YAML without its launch command and the preset's folders."""
    text = re.sub(r"^# Run:.*$", "", text, flags=re.MULTILINE)
    return re.sub(rf"outputs/({'|'.join(map(re.escape, PRESETS))})/", "outputs/", text)


def one_of_each() -> list[Path]:
    """A training of each kind: the others differ from it in the number of a cluster and in folders only."""
    found: dict[str, Path] = {}
    for path in TRAININGS:
        text = re.sub(r"^(#.*|disperse_cluster:.*)$", "", path.read_text(), flags=re.MULTILINE)
        found.setdefault(re.sub(r"outputs/\S+", "", text), path)
    return list(found.values())


@pytest.mark.parametrize("path", one_of_each(), ids=name_of)
def test_axolotl_accepts_each_training(
    path: Path, axolotl_validated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written = yaml.safe_load(path.read_text())
    make_local_files(written, tmp_path)
    monkeypatch.chdir(tmp_path)
    validated = axolotl_validated(path)
    assert dropped(written, validated) == [], "Axolotl would drop these keys"


def make_local_files(keys: dict[str, Any], folder: Path) -> None:
    """What the training reads that the user or an earlier node makes."""
    import torch
    from safetensors.torch import save_file

    for path in [entry["path"] for entry in keys["datasets"] if entry["path"].startswith(("outputs/", "./"))]:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("{}\n")
    if "delta_ewc_fisher" in keys:
        (folder / keys["delta_ewc_fisher"]).parent.mkdir(parents=True, exist_ok=True)
        save_file({"model.layers.0.mlp.up_proj.weight": torch.ones(2, 2)}, folder / keys["delta_ewc_fisher"])


def dropped(written: Any, validated: Any, at: str = "") -> list[str]:
    """Keys at any level that are written and that Axolotl's schema does not keep."""
    if isinstance(written, dict):
        return [
            key
            for name, value in written.items()
            if value is not None
            for key in (
                dropped(value, validated[name], f"{at}{name}.")
                if isinstance(validated, dict) and validated.get(name) is not None
                else [f"{at}{name}"]
            )
        ]
    if isinstance(written, list):
        pairs = enumerate(zip(written, validated, strict=True))
        return [key for index, (one, other) in pairs for key in dropped(one, other, f"{at}{index}.")]
    return []


def test_dropped_keys_are_found_at_every_level():
    written = {"a": 1, "datasets": [{"path": "x", "b": 2}], "type": {"c": 3}}
    validated = {"datasets": [{"path": "x"}], "type": {"c": None}}
    assert dropped(written, validated) == ["a", "datasets.0.b", "type.c"]


def test_mergekit_accepts_each_merge():
    for path in MERGES:
        assert_mergekit_accepts(path)


def test_mergekit_accepts_every_merge_of_a_run_folder(tmp_path: Path):
    """Every method of every arm, scaled and not."""
    content = demo_spec().model_dump(exclude_none=True)
    paft_merges = [method for method in PAFT_MERGES if method != "slerp"]
    arms = {
        "vanilla": {"scales": [1, 0.5]},
        "dtm": {"clusters": 3, "merge": list(DTM_MERGES), "scales": [1, 0.5]},
        "paft": {"merge": paft_merges, "scales": [1, 0.5]},
        "parallel": {"merge": list(PAFT_MERGES)},
        "sequential": {},
    }
    write_run_folder(check_spec({**content, "arms": arms}, where="test"), tmp_path)
    configs = sorted((tmp_path / "mergekit_configs").glob("*.yaml"))
    assert len(configs) == 2 + 8 + 8 + 5 + 1
    for path in configs:
        assert_mergekit_accepts(path)


def assert_mergekit_accepts(path: Path) -> None:
    """The schema, the method, and its parameters: none missing, none that mergekit would ignore."""
    from untax.merge import mergekit_yaml
    from untax.merge.parameters import check_parameters

    mergekit_yaml.import_quietly()
    config = mergekit_yaml.read_config(yaml.safe_load(path.read_text()), where=path)
    assert check_parameters(config, where=path) == []


def test_readmes_name_files_that_are_there():
    for name in CATALOGUE:
        text = (REPOSITORY / "recipes" / name / "README.md").read_text()
        named = re.findall(r"(?:axolotl train|untax merge|python) (\S+\.(?:yaml|py))", text)
        assert len(named) >= 2
        assert [path for path in named if not (REPOSITORY / path).is_file()] == []
        assert f"untax recipe --from {name} -o run/" in text
