"""What nodes really read: the paths in their YAMLs as they stand on disk, which may have been edited by hand."""

from __future__ import annotations

import graphlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from untax.errors import UntaxError
from untax.recipes.graph import Node, Plan
from untax.run.commands import values
from untax.run.yamls import read_yaml
from untax.training.inputs import FILE_KEYS


def as_read(plan: Plan, folder: Path) -> Plan:
    """The plan with every node waiting for whatever makes what it reads, and nodes after those that they wait for.

    Raises:
        UntaxError: nodes would wait for each other, or a YAML is missing or broken.
    """
    makers = {node.name: _makers(node, plan.nodes, folder) for node in plan.nodes}
    nodes = tuple(
        replace(node, needs=tuple(dict.fromkeys([*node.needs, *makers[node.name]]))) if makers[node.name] else node
        for node in plan.nodes
    )
    try:
        list(graphlib.TopologicalSorter({node.name: node.needs for node in nodes}).static_order())
    except graphlib.CycleError as error:
        raise _cycle(error.args[1], plan, makers) from error
    return replace(plan, nodes=tuple(_ordered(nodes)))


def maker(path: str, nodes: Iterable[Node]) -> str | None:
    """The node that makes what lies at a path of the run folder, or None."""
    place = os.path.normpath(path)
    for node in nodes:
        for output in map(os.path.normpath, node.outputs):
            if place == output or place.startswith(output + os.sep):
                return node.name
    return None


def _makers(node: Node, nodes: Iterable[Node], folder: Path) -> dict[str, str]:
    """What makes something that a node reads -> what that is."""
    found: dict[str, str] = {}
    for path in reads(node, folder):
        made_by = maker(path, nodes)
        if made_by is not None and made_by != node.name:
            found.setdefault(made_by, path)
    return found


def reads(node: Node, folder: Path) -> list[str]:
    """Paths, and names that may be paths, of what a node reads; its own output is not among them.

    Raises:
        UntaxError: a YAML is missing or broken.
    """
    if node.kind == "score":
        return list(node.models)
    if node.kind == "fisher":
        return [*node.command[2].split("+"), *values(node.command, "--data")]
    if node.kind == "replay":
        like = [path for config in values(node.command, "--like") for path in _data(read_yaml(folder / config))]
        return [*values(node.command, "--texts"), *values(node.command, "--base"), *like]
    content = read_yaml(folder / str(node.config))
    if node.kind == "merge":
        return [part for text in _texts(content) for part in text.split("+")]
    own = [str(content[key]) for key in ("base_model", *FILE_KEYS) if content.get(key)] if node.kind == "train" else []
    return [*own, *_data(content)]


def _data(content: Mapping[str, Any]) -> list[str]:
    listed = [*(content.get("datasets") or []), *(content.get("test_datasets") or [])]
    return [str(entry["path"]) for entry in listed if isinstance(entry, Mapping) and entry.get("path")]


def _texts(value: Any) -> Iterator[str]:
    """Every text in a YAML: models, the base, and files that parameters name."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _ordered(nodes: tuple[Node, ...]) -> Iterator[Node]:
    """In the given order as far as may be."""
    left, placed = list(nodes), set[str]()
    while left:
        node = next(node for node in left if placed.issuperset(node.needs))
        left.remove(node)
        placed.add(node.name)
        yield node


def _cycle(names: list[str], plan: Plan, makers: Mapping[str, Mapping[str, str]]) -> UntaxError:
    by_name = {node.name: node for node in plan.nodes}

    def step(needed: str, name: str) -> str:
        read = makers[name].get(needed)
        return f"{name} needs {needed}" + (f": {by_name[name].config or name} reads {read}" if read else "")

    steps = [step(needed, name) for needed, name in itertools.pairwise(names)]
    return UntaxError(
        f"Nodes wait for each other: {', '.join(dict.fromkeys(names))}.\n  - " + "\n  - ".join(steps),
        where="the YAMLs of this run folder",
        fix="Correct what one of them reads, or write them again: untax recipe --from untax.yaml.",
    )
