"""The trainings of a run folder as their YAMLs stand on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from untax.check.findings import Finding
from untax.errors import UntaxError
from untax.recipes.graph import Node, Plan
from untax.run.reads import maker
from untax.run.yamls import read_yaml


@dataclass(frozen=True)
class Training:
    """A training.

    Attributes:
        node: its node.
        keys: its YAML.
        base: the base model whose tokenizer and shape it has: of one that starts from a model that the run makes, the
            recipe's own.
        share: the share of the rows that it trains on.
    """

    node: Node
    keys: dict[str, Any]
    base: str
    share: float = 1.0

    @property
    def config(self) -> str:
        """The YAML's path, as findings name it."""
        return str(self.node.config)

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Its dataset entries; what is none is left out, and found elsewhere."""
        listed = self.keys.get("datasets") or []
        return [entry for entry in listed if isinstance(entry, dict) and entry.get("path")]


@dataclass
class Trainings:
    """All of them, and what is wrong with YAMLs that cannot be read."""

    found: list[Training] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def read_trainings(plan: Plan, folder: Path, base: str) -> Trainings:
    """Read every training's YAML.

    Args:
        plan: of the run folder.
        folder: the run folder.
        base: the recipe's base model.
    """
    read = Trainings()
    for node in plan.nodes:
        if node.config is None or node.kind not in ("train", "merge"):
            continue
        try:
            keys = read_yaml(folder / node.config)
        except UntaxError as error:
            read.findings.append(Finding("fail", node.config, error.problem, error.fix or ""))
            continue
        if node.kind == "train":
            named = str(keys.get("base_model"))
            clusters = keys.get("disperse_clusters")
            share = 1 / clusters if isinstance(clusters, int) and clusters > 0 else 1.0
            read.found.append(Training(node, keys, base if maker(named, plan.nodes) else named, share))
    return read
