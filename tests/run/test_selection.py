"""Which nodes ``--only``, ``--from`` and ``--until`` mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untax.errors import UntaxError
from untax.recipes.graph import Node
from untax.run.selection import Selection


def graph(**needs: str) -> list[Node]:
    return [
        Node(name, "merge", ("x",), (f"outputs/{name}",), needs=tuple(needed.split())) for name, needed in needs.items()
    ]


DEMO = graph(
    disperse="", c0="disperse", c1="disperse", sft="", dtm="c0 c1", paft="sft", score_dtm="dtm", score_paft="paft"
)


def names(**options: tuple[str, ...]) -> list[str]:
    return [node.name for node in Selection(**options).of(DEMO)]


def test_each_option_alone():
    assert names() == [node.name for node in DEMO]
    assert names(only=("score_*", "sft")) == ["sft", "score_dtm", "score_paft"]
    assert names(start=("c1",)) == ["c1", "dtm", "score_dtm"]
    assert names(until=("dtm",)) == ["disperse", "c0", "c1", "dtm"]


def test_together_they_narrow():
    assert names(start=("c1",), until=("dtm", "paft")) == ["c1", "dtm"]
    assert names(only=("dtm", "paft"), start=("sft",)) == ["paft"]
    with pytest.raises(UntaxError, match="No node is selected"):
        names(start=("score_dtm",), until=("sft",))


def test_a_misspelt_node_is_told_with_what_is_near():
    with pytest.raises(UntaxError, match=r"There is no node 'scor_dtm'\. Did you mean 'score_dtm'") as caught:
        names(until=("scor_dtm",))
    assert caught.value.where == "--until"


@given(st.lists(st.sets(st.integers(0, 9), max_size=3), min_size=1, max_size=10), st.integers(0, 9))
def test_from_and_until_are_each_others_mirror(below: list[set[int]], picked: int):
    """Reached forwards from a exactly when reached backwards from b, in any graph without cycles."""
    nodes = [
        Node(str(number), "merge", ("x",), ("o",), needs=tuple(str(need) for need in sorted(needs) if need < number))
        for number, needs in enumerate(below)
    ]
    one = str(picked % len(nodes))
    after = {node.name for node in Selection(start=(one,)).of(nodes)}
    assert after == {node.name for node in nodes if one in {n.name for n in Selection(until=(node.name,)).of(nodes)}}
    assert one in after
