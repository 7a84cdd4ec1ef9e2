"""What must fit together in a recipe: arms and their data, methods and their pairs, trainings and what is merged."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

from untax.errors import near_names
from untax.recipes import preference
from untax.recipes.arms import Ewc, Soup
from untax.recipes.checks import adapter_problems, size_problems
from untax.recipes.preference import METHODS
from untax.recipes.spec import RunSpec
from untax.recipes.trainings import preference_entries, preference_keys, sft_keys

WHAT = {"sft": "instruction data", "preference": "preference pairs", "replay": "pretraining text"}


def whole_problems(spec: RunSpec, *, unknown: Collection[str] = ()) -> list[str]:
    """All that does not fit together, a sentence each.

    Args:
        spec: the recipe, right in each of its keys.
        unknown: keys that are left out of it because they were wrong; nothing is said of what needs them.
    """
    methods = _methods(spec)
    wrong = _unknown_methods(methods)
    found = [*wrong, *_missing_data(spec, unknown)]
    known = {name: arms for name, arms in methods.items() if name in METHODS}
    if not {"training", "axolotl"} & set(unknown):
        found += _trainings(spec, known)
    if not {"preference", "training"} & set(unknown):
        found += _pairs(spec, known)
    found += [*_replay(spec), *_launch(spec)]
    if not found and not unknown:
        found += _plan_problems(spec)
    return found


def _methods(spec: RunSpec) -> dict[str, list[str]]:
    """Preference method -> the arms that use it."""
    found: dict[str, list[str]] = {}
    for name, arm in spec.arms.items():
        for method in arm.methods(spec.method):
            found.setdefault(method, []).append(name)
    return found


def _unknown_methods(methods: dict[str, list[str]]) -> list[str]:
    """Methods that an arm names are checked there; this one is the recipe's own."""
    known = list(METHODS)
    return [
        f"training.preference.rl: unknown name '{name}' ({', '.join(arms)}). {near_names(name, known)}"
        for name, arms in methods.items()
        if name not in METHODS
    ]


def _missing_data(spec: RunSpec, unknown: Collection[str]) -> list[str]:
    found = []
    for data, what in WHAT.items():
        arms = [name for name, arm in spec.arms.items() if data in arm.trains_on()]
        if arms and not getattr(spec, data) and data not in unknown:
            other = " (or name its Fisher information: fisher)" if data == "replay" and _only_ewc(spec, arms) else ""
            found.append(f"{data} is missing: {', '.join(arms)} cannot do without {what}{other}")
    return found


def _only_ewc(spec: RunSpec, arms: list[str]) -> bool:
    return all(isinstance(spec.arms[name], Ewc) for name in arms)


def _trainings(spec: RunSpec, methods: dict[str, list[str]]) -> list[str]:
    sft = [name for name, arm in spec.arms.items() if "sft" in arm.trains_on()]
    found = adapter_problems("training.sft", sft_keys(spec), sft) + _other_adapters(spec)
    found += _sizes("training.sft", sft_keys(spec), sft)
    for method, arms in methods.items():
        key = "training.preference" if not getattr(spec.training, method) else f"training.{method}"
        found += adapter_problems(key, preference_keys(spec, method), arms)
        found += _sizes(key, preference_keys(spec, method), arms)
        for problem in preference.key_problems(method, preference_keys(spec, method)):
            found.append(f"{key}, for {method} ({', '.join(arms)}): {problem}")
    return list(dict.fromkeys(found))


def _sizes(name: str, keys: dict[str, Any], arms: list[str]) -> list[str]:
    """What an adapter that arms need cannot be made without."""
    return [f"{name}.{problem} ({', '.join(arms)})" for problem in size_problems(keys) if arms]


def _other_adapters(spec: RunSpec) -> list[str]:
    """Runs of soups, and single trainings, whose own keys would make no adapter."""
    soups = [(name, arm.runs) for name, arm in spec.arms.items() if isinstance(arm, Soup)]
    own = [(f"arms.{name}.runs.{index}", keys, name) for name, runs in soups for index, keys in enumerate(runs)]
    own += [(f"nodes.{name}.axolotl", settings.axolotl, name) for name, settings in spec.nodes.items()]
    return [problem for key, keys, arm in own if "adapter" in keys for problem in adapter_problems(key, keys, [arm])]


def _launch(spec: RunSpec) -> list[str]:
    """Launchers that would leave GPUs idle, or put several processes on one."""
    if spec.device == "cpu":
        return []
    wanted = [spec.gpus, *(node.gpus for node in spec.nodes.values() if node.gpus)]
    most, least, processes = max(wanted), min(wanted), _processes(spec.launcher_args)
    if most > 1 and spec.launcher == "python":
        return [f"launcher: python starts one process, and gpus is {most}: name accelerate or torchrun"]
    if most > 1 and spec.launcher == "torchrun" and processes is None:
        return [f"launcher_args: torchrun starts one process, and gpus is {most}: give --nproc_per_node={most}"]
    if processes and processes.isdigit() and int(processes) > least:
        return [f"launcher_args: {processes} processes are started, and gpus is {least}: each needs a GPU of its own"]
    return []


def _processes(args: list[str]) -> str | None:
    """How many processes a launcher is told to start on this machine, as it is written."""
    words = " ".join(args).replace("=", " ").replace("-", "_").split()
    if {"__num_machines", "__nnodes"} & set(words):
        return "of several machines"
    names = ("__num_processes", "__nproc_per_node")
    return next((value for name, value in itertools.pairwise(words) if name in names), None)


def _pairs(spec: RunSpec, methods: dict[str, list[str]]) -> list[str]:
    """Methods without data, and data that a method cannot read."""
    found = []
    for method, arms in methods.items():
        entries = preference_entries(spec, method)
        if isinstance(spec.preference, dict) and entries is None:
            found.append(f"preference.{method} is missing: {', '.join(arms)} train with {method}")
        for index, entry in enumerate(entries or []):
            for problem in preference.entry_problems(method, entry, own=isinstance(spec.preference, dict)):
                found.append(f"preference entry {index}, for {method} ({', '.join(arms)}): {problem}")
    return found


def _replay(spec: RunSpec) -> list[str]:
    """Keys of the pretraining text that `untax replay` has no option for."""
    entries, known = spec.replay or [], ["path", "split", "name", "field", "separator"]
    found = [
        f"replay entry {index}: unknown key {key}. {near_names(str(key), known)}"
        for index, entry in enumerate(entries)
        for key in entry
        if key not in known
    ]
    same = [{key: value for key, value in entry.items() if key != "path"} for entry in entries]
    if any(one != same[0] for one in same):
        found.append("replay: its entries must agree on split, name, field and separator")
    return found


def _plan_problems(spec: RunSpec) -> list[str]:
    """Two arms that write one output, and settings of trainings that there are not."""
    from untax.recipes.plan import TwoOutputs, plan

    try:
        nodes = [node.name for node in plan(spec).nodes if node.kind == "train"]
    except TwoOutputs as error:
        return [str(error)]
    return [f"unknown training nodes.{name}. {near_names(name, nodes)}" for name in spec.nodes if name not in nodes]
