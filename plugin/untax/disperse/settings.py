"""The ``disperse_*`` keys, checked once for the plugin, the command line and the recipes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from untax.errors import UntaxError, near_names
from untax.plugins import registry

PREFIX = "disperse_"
DIALOGUE_TYPES = {"chat_template", "sharegpt"}


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


def read_settings(cfg: Mapping[str, Any], *, where: object, cluster_needed: bool = True) -> DisperseSettings:
    """The ``disperse_*`` keys of an Axolotl configuration.

    Args:
        cfg: the configuration, validated by Axolotl or straight from YAML.
        where: the file, for messages.
        cluster_needed: whether ``disperse_clusters`` without ``disperse_cluster`` is an error: yes for a training.

    Raises:
        UntaxError: all that is wrong with them, in one error.
    """
    given = {key: value for key, value in cfg.items() if key.startswith(PREFIX) and value is not None}
    problems = [f"unknown key {key}. {near_names(key, list(KEYS))}" for key in given if key not in KEYS]
    values = {key.removeprefix(PREFIX): value for key, value in given.items() if key in KEYS}
    problems += _type_problems(values)
    if not problems:
        problems += _cluster_problems(values.get("clusters"), values.get("cluster"), needed=cluster_needed)
        problems += _strategy_problems(values)
        problems += _data_problems(values, cfg)
    if problems:
        raise UntaxError(
            "These disperse keys are wrong:\n  - " + "\n  - ".join(problems),
            where=where,
            fix="Correct them in the YAML.",
        )
    return DisperseSettings(**values)


def _type_problems(values: Mapping[str, Any]) -> list[str]:
    wanted = {
        "clusters": (int, "whole number"),
        "cluster": (int, "whole number"),
        "seed": (int, "whole number"),
        "strategy": (str, "name"),
        "assignment": (str, "path"),
        "first_turn": (bool, "true or false"),
    }
    return [
        f"{PREFIX}{name}: {value!r} is no {wanted[name][1]}"
        for name, value in values.items()
        if not isinstance(value, wanted[name][0]) or (wanted[name][0] is int and isinstance(value, bool))
    ]


def _cluster_problems(clusters: int | None, cluster: int | None, *, needed: bool) -> list[str]:
    if clusters is None:
        if cluster is None:
            return []
        return [f"{PREFIX}cluster: {cluster} is given without {PREFIX}clusters, the number of clusters"]
    if clusters < 2:
        return [
            f"{PREFIX}clusters: {clusters}; dispersing needs at least 2 clusters. "
            "For one model on all rows leave the key out"
        ]
    if cluster is None:
        return [f"{PREFIX}cluster is missing: which of 0 to {clusters - 1} is trained here?"] if needed else []
    if not 0 <= cluster < clusters:
        return [
            f"{PREFIX}cluster: {cluster} is out of range; with {PREFIX}clusters: {clusters} it is 0 to {clusters - 1}"
        ]
    return []


def _strategy_problems(values: Mapping[str, Any]) -> list[str]:
    problems = []
    strategy, seed = values.get("strategy", "random"), values.get("seed", 0)
    strategies = registry("disperse_strategies")
    if strategy not in strategies:
        problems.append(f"{PREFIX}strategy: unknown '{strategy}'. {near_names(strategy, list(strategies))}")
    if not 0 <= seed < 2**64:
        problems.append(f"{PREFIX}seed: {seed}; it is 0 to 2**64 - 1")
    if values.get("clusters") is None:
        problems += [
            f"{PREFIX}{name} is given without {PREFIX}clusters, the number of clusters"
            for name in ("strategy", "seed")
            if name in values
        ]
    return problems


def _data_problems(values: Mapping[str, Any], cfg: Mapping[str, Any]) -> list[str]:
    problems = []
    if values and (cfg.get("pretraining_dataset") or cfg.get("streaming")):
        problems.append("pretraining_dataset or streaming is set, and dispersal needs rows under datasets")
    if values.get("first_turn"):
        if cfg.get("rl"):
            problems.append(f"{PREFIX}first_turn: preference rows (rl: {cfg['rl']}) have no first turn to be cut to")
        for entry in cfg.get("datasets") or []:
            kind = entry.get("type") if isinstance(entry, Mapping) else None
            if isinstance(kind, str) and kind.split(".")[0] in DIALOGUE_TYPES:
                problems.append(
                    f"{PREFIX}first_turn writes rows of instruction, input and output, and `type: {kind}` of "
                    f"{entry.get('path')} reads dialogues: use `type: alpaca`"
                )
    return problems
