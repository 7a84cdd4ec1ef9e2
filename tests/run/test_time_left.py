"""How much longer a run takes."""

from __future__ import annotations

import pytest

from untax.recipes.graph import Node
from untax.run.durations import exactly, roughly
from untax.run.time_left import Pace, TimeLeft, time_left


def node(name: str, kind: str = "train", needs: tuple[str, ...] = (), share: float = 1.0) -> Node:
    return Node(name, kind, (), (), needs=needs, share=share)  # type: ignore[arg-type]


def pace(**seconds: float) -> Pace:
    return Pace({kind: [took] for kind, took in seconds.items()})


def test_nothing_is_known_at_first() -> None:
    assert time_left([node("a")], {"b": None}, pace=Pace(), places=2) == TimeLeft(None, complete=False)


def test_nothing_is_left() -> None:
    assert time_left([], {}, pace=Pace(), places=2) == TimeLeft(0.0, complete=True)


def test_nodes_wait_for_places_and_for_each_other() -> None:
    trainings = [node(f"t{i}", share=0.5) for i in range(4)]
    merge = node("merge", "merge", needs=tuple(one.name for one in trainings))
    known = pace(train=100, merge=7)
    assert time_left([*trainings, merge], {}, pace=known, places=1) == TimeLeft(4 * 50 + 7, complete=True)
    assert time_left([*trainings, merge], {}, pace=known, places=2) == TimeLeft(2 * 50 + 7, complete=True)
    assert time_left([*trainings, merge], {}, pace=known, places=8) == TimeLeft(50 + 7, complete=True)
    # One is at work and holds a place for 30 s more: the other place takes two of the three, one after the other.
    assert time_left([*trainings[1:], merge], {"t0": 30.0}, pace=known, places=2).seconds == 30 + 50 + 7 + 20


def test_what_is_unknown_makes_it_the_least() -> None:
    left = time_left([node("s", "score", needs=("t",))], {"t": 30.0}, pace=pace(train=100), places=2)
    assert left == TimeLeft(30.0, complete=False)


def test_what_can_never_start_is_left_out() -> None:
    circle = [node("a", needs=("b",)), node("b", needs=("a",))]
    assert time_left(circle, {"t": 30.0}, pace=pace(train=100), places=2).seconds == 30


def test_pace_goes_by_share() -> None:
    known = Pace()
    known.add(node("a", share=0.25), 10)
    known.add(node("b", share=1.0), 60)
    assert known.of(node("c", share=0.5)) == pytest.approx((40 + 60) / 2 * 0.5)
    assert known.of(node("c", "merge")) is None
    known.add(node("m", "merge", share=0.0), 5)
    assert known.of(node("n", "merge", share=0.0)) == 5


@pytest.mark.parametrize(
    ("seconds", "exact", "rough"),
    [
        (-3, "0 s", "0 s"),
        (0.4, "0 s", "0 s"),
        (12, "12 s", "12 s"),
        (59.6, "1 min 00 s", "1 min 00 s"),
        (200, "3 min 20 s", "3 min 20 s"),
        (725, "12 min 05 s", "12 min"),
        (3569, "59 min 29 s", "59 min"),
        (3599.7, "1 h 00 min", "1 h 00 min"),
        (14_700, "4 h 05 min", "4 h 05 min"),
        (200_000, "55 h 33 min", "55 h 33 min"),
    ],
)
def test_durations(seconds: float, exact: str, rough: str) -> None:
    assert (exactly(seconds), roughly(seconds)) == (exact, rough)
