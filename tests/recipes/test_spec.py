"""untax.yaml: every wrong key is named at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from untax.errors import UntaxError
from untax.recipes.spec import check_spec, read_spec
from untax.recipes.write import spec_text

GOOD = {
    "base": "some/base",
    "sft": [{"path": "sft.jsonl", "type": "alpaca"}],
    "preference": [{"path": "pairs.jsonl"}],
    "arms": {"vanilla": None, "dtm": {"clusters": 3}, "paft": {}},
}


def test_arm_without_settings_has_the_defaults():
    spec = check_spec(GOOD, where="test")
    assert spec.arms.names == ["vanilla", "dtm", "paft"]
    assert spec.arms.vanilla is not None
    assert spec.arms.vanilla.scales == [1.0]
    assert spec.arms.dtm is not None
    assert spec.arms.dtm.clusters == 3


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
        ({"arms": {"paft": {"merge": ["slerp"], "scales": [0.5]}}}, "slerp"),
        ({"arms": {"dtm": {"scales": []}}}, "arms.dtm.scales"),
        ({"arms": {"dtm": {"scales": [0]}}}, "arms.dtm.scales.0"),
    ],
)
def test_what_makes_no_sense_is_refused(change, said):
    with pytest.raises(UntaxError, match=said):
        check_spec({**GOOD, **change}, where="untax.yaml")


def test_spec_survives_being_written(tmp_path: Path):
    spec = check_spec({**GOOD, "training": {"sft": {"learning_rate": 1e-5}}, "suite": "demo"}, where="test")
    (tmp_path / "untax.yaml").write_text(spec_text(spec))
    assert read_spec(tmp_path / "untax.yaml") == spec


@pytest.mark.parametrize("content", ["arms: [", "- a\n- b\n", ""])
def test_a_file_that_is_no_spec(tmp_path: Path, content: str):
    (tmp_path / "untax.yaml").write_text(content)
    with pytest.raises(UntaxError, match="recipe"):
        read_spec(tmp_path / "untax.yaml")


def test_a_missing_file_names_the_command(tmp_path: Path):
    with pytest.raises(UntaxError, match="untax recipe dtm"):
        read_spec(tmp_path / "untax.yaml")
