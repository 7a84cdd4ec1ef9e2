"""Whatever stands in untax.yaml is read or refused in words: nothing else comes out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from untax.errors import UntaxError
from untax.recipes.plan import plan
from untax.recipes.spec import check_spec
from untax.recipes.write import spec_text

LORA = {"adapter": "lora", "lora_r": 16, "lora_alpha": 16}
RECIPE: dict[str, Any] = {
    "base": "b",
    "sft": [{"path": "s.jsonl", "type": "alpaca"}],
    "preference": {"dpo": [{"path": "p.jsonl", "type": {"field_prompt": "q"}}]},
    "replay": [{"path": "t.txt", "separator": "---"}],
    "arms": {
        "k2": {"arm": "dtm", "clusters": 2, "merge": ["average", {"method": "ties", "weights": [1, 2]}]},
        "soup": {"runs": [{}, {"seed": 1}], "scales": [1, 0.5]},
        "ewc": {},
        "paft": {"delta_l1": 0.0001, "preference": ["dpo"]},
    },
    "training": {"sft": {**LORA, "plugins": ["x.Y"]}, "preference": {**LORA, "rl": "dpo"}},
    "axolotl": {"flash_attention": True},
    "nodes": {"sft-sparse": {"axolotl": {"lora_r": 4}, "gpus": 1}},
    "suite": "demo",
}
NAMES = (
    "x",
    "base",
    "a/b",
    "arm",
    "method",
    "weights",
    "datasets",
    "rl",
    "dpo",
    "score-k2",
    "average",
    "a\nb: c",
    "\x00",
    "",
)
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.dates(), st.binary(max_size=2), st.sampled_from(NAMES)
)
KEYS = st.one_of(st.none(), st.booleans(), st.integers(0, 2), st.dates(), st.sampled_from(NAMES))
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2), max_leaves=4
)


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where anything stands in a recipe, itself excepted."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*before, key)
        yield from places(item, (*before, key))


@st.composite
def recipes(draw: Any) -> Any:
    """``RECIPE`` with another value, a key less or a key more at one place or two."""
    content = copy.deepcopy(RECIPE)
    for _ in range(draw(st.integers(1, 2))):
        *path, last = draw(st.sampled_from(list(places(content))))
        holder = content
        for key in path:
            holder = holder[key]
        change = draw(st.sampled_from(["value", "less", "more"]))
        if change == "less":
            del holder[last]
        elif change == "more" and isinstance(holder, dict):
            holder[draw(KEYS)] = draw(VALUES)
        else:
            holder[last] = draw(VALUES)
    return content


def test_the_recipe_itself_is_right():
    assert len(plan(check_spec(RECIPE, where="test")).nodes) > 10


@settings(max_examples=400, deadline=None)
@given(recipes())
def test_any_recipe_is_read_or_refused(content: Any):
    try:
        spec = check_spec(content, where="test")
    except UntaxError:
        return
    expanded = plan(spec)
    for node in expanded.nodes:
        text = expanded.files.get(str(node.config))
        assert text is None or isinstance(yaml.safe_load(text), dict)
    names = {node.name for node in expanded.nodes}
    outputs = [output for node in expanded.nodes for output in node.outputs]
    assert len(outputs) == len(set(outputs))
    assert all(names.issuperset(node.needs) for node in expanded.nodes)
    written = check_spec(yaml.safe_load(spec_text(spec)), where="test")
    assert spec_text(written) == spec_text(spec)
    assert [node.name for node in plan(written).nodes] == [node.name for node in expanded.nodes]
