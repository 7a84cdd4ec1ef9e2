"""``--only``, ``--from`` and ``--until``: which nodes of a graph a run is about."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from untax.errors import UntaxError, near_names
from untax.recipes.graph import Node


@dataclass(frozen=True)
class Selection:
    """Names of nodes, or patterns such as ``score-*``; what is empty selects all.

    Attributes:
        only: these nodes and no others.
        start: these nodes and all that needs them.
        until: these nodes and all that they need.
    """

    only: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    until: tuple[str, ...] = ()

    def of(self, nodes: Sequence[Node]) -> tuple[Node, ...]:
        """The nodes that are selected by all that is given, in the graph's order.

        Raises:
            UntaxError: a pattern fits no node, or no node is left.
        """
        needs = {node.name: set(node.needs) for node in nodes}
        needed_by: dict[str, set[str]] = {name: set() for name in needs}
        for name, needed in needs.items():
            for one in needed:
                needed_by[one].add(name)
        chosen = set(needs)
        if self.only:
            chosen &= _fitting(self.only, needs, "--only")
        if self.start:
            chosen &= _reached(_fitting(self.start, needs, "--from"), needed_by)
        if self.until:
            chosen &= _reached(_fitting(self.until, needs, "--until"), needs)
        if not chosen:
            raise UntaxError(
                "No node is selected by all of these at once.",
                where="--only, --from, --until",
                fix="Leave one of them out; `untax status` lists the nodes.",
            )
        return tuple(node for node in nodes if node.name in chosen)


def _fitting(patterns: Iterable[str], names: Iterable[str], option: str) -> set[str]:
    known, chosen = list(names), set()
    for pattern in patterns:
        fitting = {name for name in known if fnmatch.fnmatchcase(name, pattern)}
        if not fitting:
            raise UntaxError(
                f"There is no node '{pattern}'. {near_names(pattern, known)}",
                where=option,
                fix="Name a node, or several by a pattern such as 'score-*'.",
            )
        chosen |= fitting
    return chosen


def _reached(names: set[str], edges: Mapping[str, set[str]]) -> set[str]:
    """These and all that can be reached from them."""
    reached, left = set(names), list(names)
    while left:
        for name in edges[left.pop()] - reached:
            reached.add(name)
            left.append(name)
    return reached
