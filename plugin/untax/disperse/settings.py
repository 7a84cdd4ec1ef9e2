"""The ``disperse_*`` keys, checked once for the plugin, the command line and the recipes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from untax.errors import UntaxError, near_names
from untax.plugins import registry

PREFIX = "disperse_"


@dataclass(frozen=True)
class DisperseSettings:
    """How a corpus is dispersed, and which cluster is trained.

    ``clusters`` is None when rows are only cut to their first turn and all of them are trained on.
    """

    clusters: int | None = None
    cluster: int | None = None
    strategy: str = "random"
    seed: int = 42
    first_turn: bool = False
    assignment: str | None = None

    @property
    def active(self) -> bool:
        """Whether the plugin has anything to do."""
        return self.clusters is not None or self.first_turn

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the clusters besides the rows; kept in the assignment's manifest."""
        return {
            "strategy": self.strategy if self.clusters else "all",
            "seed": self.seed if self.clusters else None,
            "clusters": self.clusters or 1,
            "first_turn": self.first_turn,
        }


KEYS = tuple(PREFIX + field.name for field in dataclasses.fields(DisperseSettings))


def read_settings(cfg: Mapping[str, Any], *, where: object) -> DisperseSettings:
    """The ``disperse_*`` keys of an Axolotl configuration.

    Raises:
        UntaxError: all that is wrong with them, in one error.
    """
    given = {key: value for key, value in cfg.items() if key.startswith(PREFIX) and value is not None}
    problems = [f"unknown key {key}. {near_names(key, list(KEYS))}" for key in given if key not in KEYS]
    values = {key.removeprefix(PREFIX): value for key, value in given.items() if key in KEYS}
    problems += _type_problems(values)
    if not problems:
        problems += _value_problems(values, pretraining=bool(cfg.get("pretraining_dataset") or cfg.get("streaming")))
    if problems:
        raise UntaxError("These disperse keys are wrong:\n  - " + "\n  - ".join(problems), where=where, fix="Correct them in the YAML.")
    return DisperseSettings(**values)


def _type_problems(values: Mapping[str, Any]) -> list[str]:
    wanted = {"clusters": int, "cluster": int, "seed": int, "strategy": str, "assignment": str, "first_turn": bool}
    return [
        f"{PREFIX}{name}: {value!r} is no {wanted[name].__name__}"
        for name, value in values.items()
        if not isinstance(value, wanted[name]) or (wanted[name] is int and isinstance(value, bool))
    ]


def _value_problems(values: Mapping[str, Any], *, pretraining: bool) -> list[str]:
    problems = []
    clusters, cluster = values.get("clusters"), values.get("cluster")
    if clusters is None and cluster is not None:
        problems.append(f"{PREFIX}cluster: {cluster} is given without {PREFIX}clusters, the number of clusters")
    if clusters is not None:
        if clusters < 2:
            problems.append(f"{PREFIX}clusters: {clusters}; dispersing needs at least 2 clusters. For one model on all rows leave the key out")
        elif cluster is None:
            problems.append(f"{PREFIX}cluster is missing: which of the clusters 0 to {clusters - 1} is trained here?")
        elif not 0 <= cluster < clusters:
            problems.append(f"{PREFIX}cluster: {cluster} is out of range; with {PREFIX}clusters: {clusters} it is 0 to {clusters - 1}")
    strategy = values.get("strategy", "random")
    strategies = registry("disperse_strategies")
    if strategy not in strategies:
        problems.append(f"{PREFIX}strategy: unknown '{strategy}'. {near_names(strategy, list(strategies))}")
    if values and pretraining:
        problems.append("pretraining_dataset or streaming is set, and dispersal needs rows under datasets")
    return problems
