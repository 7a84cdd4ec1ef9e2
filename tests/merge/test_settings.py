"""Parameters as mergekit resolves them: compared with mergekit's own resolution."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untax.errors import UntaxError
from untax.merge.method import Method, Parameter
from untax.merge.settings import Settings, evaluate, has_gradients, layer_count

NAMES = ["model.layers.0.mlp.up_proj.weight", "model.layers.3.self_attn.q_proj.weight", "lm_head.weight", "h.2.c.bias"]
numbers = st.one_of(st.floats(-2, 2), st.integers(-3, 3), st.sampled_from(["1e-4", "0.5"]))
gradients = st.lists(numbers, min_size=1, max_size=5)
conditions = st.fixed_dictionaries(
    {"value": st.one_of(numbers, gradients)},
    optional={"filter": st.sampled_from(["mlp", "self_attn", "*", "lm_head", "none"])},
)
settings_ = st.one_of(numbers, gradients, conditions, st.lists(conditions, min_size=1, max_size=4))


@given(settings_, st.sampled_from(NAMES), st.floats(0, 1))
def test_evaluate_is_mergekits(setting: Any, name: str, position: float) -> None:
    from mergekit.config import ParameterSetting, evaluate_setting
    from pydantic import TypeAdapter

    parsed = TypeAdapter(ParameterSetting).validate_python(setting)
    wanted = evaluate_setting(name, parsed, position, validate=TypeAdapter(float).validate_python)
    assert evaluate(setting, name, position, float) == wanted


def settings(models: list[dict[str, Any]], shared: dict[str, Any], layers: int | None = 4) -> Settings:
    method = Method(
        "m",
        (
            Parameter("weight", float, per_model=True),
            Parameter("normalize", bool, default=True),
            Parameter("density", float, per_model=True, default=1.0),
        ),
        merge=lambda block: block.deltas[0],
    )
    return Settings(method, tuple(models), tuple(f"a{n}" for n in range(len(models))), shared, layers, "merge.yaml")


def test_model_before_merge_before_default() -> None:
    found = settings([{"weight": 2}, {}], {"weight": 3, "normalize": False}).values(NAMES[0])
    assert found == {"weight": (2.0, 3.0), "normalize": False, "density": (1.0, 1.0)}


def test_gradient_runs_over_the_layers_and_is_its_first_value_outside() -> None:
    given_ = settings([{"weight": [0, 3]}], {})
    values = [given_.values(f"model.layers.{layer}.mlp.up_proj.weight")["weight"][0] for layer in range(4)]
    assert values == pytest.approx([0, 1, 2, 3])
    assert given_.values("lm_head.weight")["weight"] == (0.0,)
    assert settings([{"weight": [0, 3]}], {}, layers=1).values(NAMES[0])["weight"] == (3.0,)


def test_filter_that_matches_nothing_falls_to_the_next_scope() -> None:
    found = settings([{"weight": [{"filter": "mlp", "value": 5}]}], {"weight": 7})
    assert [found.values(name)["weight"] for name in NAMES[:2]] == [(5.0,), (7.0,)]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([{}], "needs the parameter 'weight' for a0"),
        ([{"weight": [{"filter": "mlp", "value": 1}]}], "none of its filters is in lm_head.weight"),
        ([{"weight": "much"}], "weight of a0 is 'much', no float"),
        ([{"weight": float("nan")}], "weight of a0 is nan"),
        ([{"weight": [{"valeu": 1}]}], "no float, filter or gradient"),
        ([{"weight": 1, "density": {"a": 1}}], "density of a0"),
    ],
)
def test_refused(models: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UntaxError, match=r"merge\.yaml") as caught:
        settings(models, {}).values("lm_head.weight")
    assert message in str(caught.value)


def test_unknown_keys_are_told_with_near_names() -> None:
    (sentence,) = settings([{"weight": 1, "normalize_weights": 1}], {}).unknown()
    assert "ignores it" in sentence
    assert "Did you mean 'normalize'?" in sentence
    with pytest.raises(UntaxError, match="m has no parameter 'densty'"):
        settings([{"weight": 1, "densty": 1}], {}).unknown()


def test_gradients_and_layers() -> None:
    assert has_gradients([{"weight": 1}, {"weight": [{"filter": "a", "value": [0, 1]}]}])
    assert not has_gradients([{"weight": [{"filter": "a", "value": 1}]}])
    assert [layer_count(config) for config in ({"num_hidden_layers": 3}, {"n_layer": 2}, {})] == [3, 2, None]
