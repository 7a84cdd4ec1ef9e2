"""untax.yaml: every wrong key is named at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from untax.errors import UntaxError
from untax.recipes.arms import Dtm
from untax.recipes.spec import check_spec, read_spec
from untax.recipes.write import spec_text

LORA = {"adapter": "lora", "lora_r": 16, "lora_alpha": 16}
GOOD: dict[str, Any] = {
    "base": "some/base",
    "sft": [{"path": "sft.jsonl", "type": "alpaca"}],
    "preference": [{"path": "pairs.jsonl"}],
    "arms": {"vanilla": None, "dtm": {"clusters": 3}, "paft": {}},
    "training": {"sft": LORA, "preference": {**LORA, "rl": "dpo"}},
}


def test_arm_without_settings_has_the_defaults():
    spec = check_spec(GOOD, where="test")
    assert list(spec.arms) == ["vanilla", "dtm", "paft"]
    assert spec.arms["vanilla"].scales == [1.0]
    assert isinstance(spec.arms["dtm"], Dtm)
    assert spec.arms["dtm"].clusters == 3


def test_all_problems_in_one_error():
    wrong = {
        "base": "a+b",
        "devise": "cpu",
        "sft": [{"type": "alpaca"}],
        "arms": {"dtm": {"cluster": 4, "clusters": 1, "merge": ["tie"]}, "paft": {"delta_l1": float("nan")}},
    }
    with pytest.raises(UntaxError) as caught:
        check_spec(wrong, where="untax.yaml")
    message = str(caught.value)
    for part in (
        "unknown key devise. Did you mean 'device'?",
        "unknown key arms.dtm.cluster. Did you mean 'clusters'?",
        "arms.dtm.clusters",
        "arms.dtm.merge.0",
        "arms.paft.delta_l1",
        "entry 0 has no path",
        "'+'",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"arms": {}}, "no arm is named"),
        ({"sft": None}, "sft is missing"),
        ({"preference": None}, "preference is missing: paft"),
        ({"arms": {"paft": {"delta_l1": -1.0}}}, "arms.paft.delta_l1"),
        ({"arms": {"dtm": {"merge": ["slerp"]}}}, "slerp merges two models, and this arm has 4"),
        ({"arms": {"dtm": {"scales": []}}}, "arms.dtm.scales"),
        ({"arms": {"dtm": {"scales": [0]}}}, "arms.dtm.scales.0"),
        ({"arms": {"dtm": {"scales": [0.5, 1, 0.5]}}}, "arms.dtm.scales: 0.5 is named twice"),
        ({"arms": {"vanilla": {"scales": [0.5, 0.50000001]}}}, "0.5 is named twice"),
        ({"arms": {"dtm": {"merge": ["ties", "ties"]}}}, "arms.dtm.merge: ties is named twice"),
        ({"arms": {"dtm": {"merge": ["averge"]}}}, "'averge'. Did you mean 'average'"),
        ({"arms": {"dtm": {"strategy": "randm"}}}, "arms.dtm.strategy: unknown name 'randm'. Did you mean 'random'"),
        ({"arms": {"dtm": 4}}, "arms.dtm: keys and values belong here, not 4"),
        ({"suite": "dmo"}, "suite: unknown name 'dmo'. Did you mean 'demo'"),
        ({"base": " "}, "base: it is empty"),
        ({"sft": [{"path": 5}, {"path": ""}]}, "entry 0: path is text, not 5\n.*entry 1 has no path"),
        ({"training": {"sft": {**LORA, "plugins": "x.Y"}}}, "training.sft: plugins is a list"),
        ({"training": {"sft": {**LORA, "plugins": ["untax.Dispers"]}}}, "untax.Dispers"),
        ({"training": {"sft": {**LORA, "rl": "dpo"}}}, "training.sft: rl belongs to the plan"),
        ({"training": {"dpo": {"rl": "ipo"}}}, "training.dpo: rl belongs to the plan"),
        ({"arms": {True: [1]}}, "arms.True: keys and values belong here"),
        ({"nodes": {3: {"x": 1}}}, "nodes.3"),
    ],
)
def test_what_makes_no_sense_is_refused(change, said):
    with pytest.raises(UntaxError, match=said):
        check_spec({**GOOD, **change}, where="untax.yaml")


OWNED = ("output_dir", "datasets", "base_model", "dataset_prepared_path", "seed", "disperse_cluster", "delta_l1")


@pytest.mark.parametrize("kind", ["sft", "preference"])
def test_keys_of_the_plan_are_refused_with_the_other_problems(kind: str):
    training = {**GOOD["training"], kind: {**GOOD["training"][kind], **dict.fromkeys(OWNED, 1), "lora_r": 8}}
    with pytest.raises(UntaxError) as caught:
        check_spec({**GOOD, "training": training, "devise": "cpu"}, where="untax.yaml")
    for key in OWNED:
        assert f"training.{kind}: {key} belongs to the plan" in str(caught.value)
    assert "devise" in str(caught.value)
    assert "lora_r" not in str(caught.value)


def test_what_could_not_be_merged_is_refused():
    """The arms that are asked for decide which keys are needed."""
    with pytest.raises(UntaxError) as caught:
        check_spec({**GOOD, "training": {}, "suite": "dmo"}, where="untax.yaml")
    for part in ("training.sft.adapter", "training.preference.adapter", "suite"):
        assert f"  - {part}:" in str(caught.value)
    with pytest.raises(UntaxError) as caught:
        check_spec({**GOOD, "training": {}, "arms": {"vanilla": {}}}, where="untax.yaml")
    assert "preference" not in str(caught.value)
    without = {name: value for name, value in GOOD.items() if name != "training"}
    with pytest.raises(UntaxError, match=r"training\.sft\.adapter"):
        check_spec(without, where="untax.yaml")


@pytest.mark.parametrize("key", ["lora_r", "lora_alpha"])
def test_an_adapter_without_its_size_is_refused(key: str):
    """Axolotl hands PEFT a None for them."""
    less = {name: value for name, value in LORA.items() if name != key}
    training = {"sft": less, "preference": {**less, "rl": "dpo"}}
    sft, preference = (f"  - training.{kind}.{key}: it is missing, and Axolotl has" for kind in ("sft", "preference"))
    with pytest.raises(UntaxError) as caught:
        check_spec({**GOOD, "training": training, "devise": "cpu"}, where="untax.yaml")
    assert (sft in str(caught.value), preference in str(caught.value)) == (True, True)
    with pytest.raises(UntaxError) as caught:
        check_spec({**GOOD, "training": training, "arms": {"vanilla": {}}}, where="untax.yaml")
    assert (sft in str(caught.value), preference in str(caught.value)) == (True, False)
    assert "(vanilla)" in str(caught.value)
    # Where it stands does not matter, and an adapter that is trained further has its own.
    for common in ({key: 8}, {"lora_model_dir": "outputs/before"}):
        check_spec({**GOOD, "training": training, "axolotl": common}, where="untax.yaml")
    nodes = {"sft": {"axolotl": {"adapter": "qlora"}}}
    check_spec({**GOOD, "arms": {"vanilla": {}}, "nodes": nodes}, where="untax.yaml")


def test_local_files_are_looked_at_from_the_run_folder(tmp_path: Path):
    for name in ("model.gguf", "empty.jsonl", "full.jsonl"):
        (tmp_path / name).write_text("" if name.startswith("empty") else "{}\n")
    content = {**GOOD, "base": "../model.gguf", "sft": [{"path": "../full.jsonl"}, {"path": "../empty.jsonl"}]}
    assert check_spec(content, where="untax.yaml").base == "../model.gguf"
    with pytest.raises(UntaxError) as caught:
        check_spec(content, where="untax.yaml", folder=tmp_path / "run")
    assert "base: ../model.gguf is a file" in str(caught.value)
    assert "sft: entry 1: the file ../empty.jsonl is empty" in str(caught.value)
    assert "entry 0" not in str(caught.value)


def test_an_empty_file_is_called_empty(tmp_path: Path):
    (tmp_path / "untax.yaml").write_text("# nothing yet\n")
    with pytest.raises(UntaxError, match=r"^The recipe is empty\."):
        read_spec(tmp_path / "untax.yaml")


def test_a_folder_is_no_recipe(tmp_path: Path):
    with pytest.raises(UntaxError, match="directory"):
        read_spec(tmp_path)


def test_spec_survives_being_written(tmp_path: Path):
    training = {**GOOD["training"], "sft": {**LORA, "adapter": "qlora", "learning_rate": 1e-5}}
    spec = check_spec({**GOOD, "training": training, "suite": "demo"}, where="test")
    (tmp_path / "untax.yaml").write_text(spec_text(spec))
    assert read_spec(tmp_path / "untax.yaml") == spec


@pytest.mark.parametrize("content", ["arms: [", "- a\n- b\n", ""])
def test_a_file_that_is_no_spec(tmp_path: Path, content: str):
    (tmp_path / "untax.yaml").write_text(content)
    with pytest.raises(UntaxError, match="recipe"):
        read_spec(tmp_path / "untax.yaml")


@pytest.mark.parametrize(
    "content", ["base: a\nbase: b\n", "base: a\narms:\n  dtm: {clusters: 2}\n  dtm: {clusters: 3}\n"]
)
def test_a_key_that_comes_twice_is_refused(tmp_path: Path, content: str):
    (tmp_path / "untax.yaml").write_text(content)
    with pytest.raises(UntaxError, match=r"the key (base|dtm) comes a second time(.|\n)*line [24]"):
        read_spec(tmp_path / "untax.yaml")
    (tmp_path / "untax.yaml").write_text("base: &x {a: 1}\narms: {<<: *x, b: 2}\n")
    with pytest.raises(UntaxError, match="The recipe is wrong"):  # merged keys are no doubles
        read_spec(tmp_path / "untax.yaml")


def test_a_missing_file_names_the_command(tmp_path: Path):
    with pytest.raises(UntaxError, match="untax recipe"):
        read_spec(tmp_path / "untax.yaml")
