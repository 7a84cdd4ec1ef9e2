"""How much longer a run takes, by what its nodes have taken so far."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from untax.recipes.graph import Node


@dataclass(frozen=True)
class TimeLeft:
    """An estimate.

    Attributes:
        seconds: until the last node ends; None while nothing is known.
        complete: whether there is an estimate for every node that is left; else it is the least that it takes.
    """

    seconds: float | None
    complete: bool


@dataclass
class Pace:
    """Seconds that nodes of a kind took, for each unit of ``Node.share``."""

    taken: dict[str, list[float]] = field(default_factory=dict)

    def add(self, node: Node, seconds: float) -> None:
        """A node that took so long, or will have."""
        self.taken.setdefault(node.kind, []).append(seconds / (node.share or 1.0))

    def of(self, node: Node) -> float | None:
        """What a node would take: the mean of its kind by its share; None when none of its kind is known."""
        taken = self.taken.get(node.kind)
        return sum(taken) / len(taken) * (node.share or 1.0) if taken else None


def time_left(
    waiting: Sequence[Node],
    running: Mapping[str, float | None],
    *,
    pace: Pace,
    places: int,
) -> TimeLeft:
    """How long until all is done, if every node starts as soon as it can and a place is free.

    Args:
        waiting: nodes that have not been started and are not out of reach.
        running: name -> seconds left of the nodes at work, None where it is not known.
        pace: what nodes took so far.
        places: how many nodes can be at work at once.
    """
    known = {node.name: pace.of(node) for node in waiting}
    estimates = [*known.values(), *running.values()]
    if estimates and all(seconds is None for seconds in estimates):
        return TimeLeft(None, complete=False)
    ends = [(seconds or 0.0, name) for name, seconds in running.items()]
    seconds = _simulate(waiting, {name: took or 0.0 for name, took in known.items()}, ends, max(places, len(ends), 1))
    return TimeLeft(seconds, complete=None not in estimates)


def _simulate(waiting: Sequence[Node], takes: Mapping[str, float], ends: list[tuple[float, str]], places: int) -> float:
    """When the last node ends."""
    heapq.heapify(ends)
    pending, now = list(waiting), 0.0
    unfinished = {node.name for node in waiting} | {name for _, name in ends}
    while pending or ends:
        for node in [one for one in pending if not _blocked(one, unfinished)][: places - len(ends)]:
            pending.remove(node)
            heapq.heappush(ends, (now + takes[node.name], node.name))
        if not ends:
            break  # What is left needs something that will not come.
        now, name = heapq.heappop(ends)
        unfinished.discard(name)
    return now


def _blocked(node: Node, unfinished: Collection[str]) -> bool:
    return any(need in unfinished for need in node.needs)
