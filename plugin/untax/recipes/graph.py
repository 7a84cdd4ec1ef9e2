"""The parts of a run folder: what is trained, merged and scored, and what needs what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["disperse", "replay", "fisher", "train", "merge", "score"]


@dataclass(frozen=True)
class Layout:
    """Where things lie below the run folder. A name puts several recipes side by side, as in the repository."""

    name: str = ""

    def _in(self, folder: str, *parts: str) -> str:
        return "/".join(part for part in (folder, self.name, *parts) if part)

    def recipe(self, node: str) -> str:
        """The Axolotl YAML of a training."""
        return self._in("recipes", f"{node}.yaml")

    def config(self, node: str) -> str:
        """The mergekit YAML of a merge."""
        return self._in("mergekit_configs", f"{node}.yaml")

    def output(self, node: str) -> str:
        """The folder of an adapter or model."""
        return self._in("outputs", node)

    def results(self, model: str) -> str:
        """The folder of a model's scores."""
        return self._in("results", model)

    @property
    def spec(self) -> str:
        """The recipe spec."""
        return self._in("recipes", "untax.yaml") if self.name else "untax.yaml"


@dataclass(frozen=True)
class Node:
    """One command of a run folder.

    Attributes:
        name: unique in the folder.
        kind: what it does.
        command: the command line, run in the run folder.
        outputs: the folders that it finishes, each with a manifest.
        config: its YAML, if it has one.
        needs: names of the nodes that must be finished before.
        share: the share of the data that it works on, for the order in which nodes start.
        models: what a score node scores, one model for each of ``outputs``.
        gpus: how many GPUs it takes at once, where there are any.
    """

    name: str
    kind: Kind
    command: tuple[str, ...]
    outputs: tuple[str, ...]
    config: str | None = None
    needs: tuple[str, ...] = ()
    share: float = 1.0
    models: tuple[str, ...] = ()
    gpus: int = 1


@dataclass(frozen=True)
class ScoredModel:
    """A row of the table: an arm at one scale of its delta.

    Attributes:
        arm: its name in the table.
        scale: what its delta is multiplied by.
        model: the folder of the model.
        results: the folder of its scores.
    """

    arm: str
    scale: float
    model: str
    results: str


@dataclass(frozen=True)
class Plan:
    """Everything that a spec stands for.

    Attributes:
        files: relative path -> text of every generated YAML.
        nodes: the graph, in an order in which it could be run.
        models: the rows of the table, the base first.
    """

    files: dict[str, str]
    nodes: tuple[Node, ...]
    models: tuple[ScoredModel, ...]
