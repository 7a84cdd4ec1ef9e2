"""Where every node of a run stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from untax.recipes.graph import Node
from untax.run.progress import Progress, of_node
from untax.run.time_left import Pace, TimeLeft, time_left
from untax.run.workers import Running

State = Literal["waiting", "running", "done", "failed", "blocked"]
SETTLED = ("done", "failed", "blocked")


class Board:
    """The nodes of a run, their states, and what they took.

    Attributes:
        nodes: all of them.
        states: name -> state.
        pace: what those took that ended well, for the estimate of what is left.
        places: the most nodes that were at work at once.
    """

    def __init__(self, nodes: Sequence[Node], folder: Path):
        self.nodes, self.folder = tuple(nodes), folder
        self.states: dict[str, State] = {node.name: "waiting" for node in nodes}
        self.pace = Pace()
        self.places = 1

    def put(self, node: Node, state: State) -> None:
        """A node's new state."""
        self.states[node.name] = state
        self.places = max(self.places, sum(own == "running" for own in self.states.values()))

    @property
    def settled(self) -> str:
        """``3/12``."""
        return f"{sum(state in SETTLED for state in self.states.values())}/{len(self.states)}"

    def stages(self) -> dict[str, Counter[State]]:
        """kind -> how many nodes are in which state, in the order of the graph."""
        counts: dict[str, Counter[State]] = {}
        for node in self.nodes:
            counts.setdefault(node.kind, Counter())[self.states[node.name]] += 1
        return counts

    def progress(self, running: Running) -> Progress | None:
        """How far a node at work is."""
        return of_node(running.node, self.folder, running.log)

    def time_left(self, running: Sequence[Running], progress: Mapping[str, Progress | None]) -> TimeLeft:
        """How much longer the run takes, with the nodes at work and how far each is."""
        pace = Pace({kind: [*taken] for kind, taken in self.pace.taken.items()})
        left = {one.node.name: _seconds_left(progress.get(one.node.name)) for one in running}
        for one in running:
            seconds = left[one.node.name]
            if seconds is not None:
                pace.add(one.node, one.seconds + seconds)
        for one in running:
            usual = pace.of(one.node)
            if left[one.node.name] is None and usual is not None:
                left[one.node.name] = max(0.0, usual - one.seconds)
        waiting = [node for node in self.nodes if self.states[node.name] == "waiting" and node.name not in left]
        return time_left(waiting, left, pace=pace, places=self.places)


def _seconds_left(progress: Progress | None) -> float | None:
    return None if progress is None else progress.seconds_left
