"""A YAML as Axolotl's own schema takes it: values that it refuses, and keys that it drops without a word."""

from __future__ import annotations

import copy
import difflib
import importlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from untax.check.axolotl_rows import quiet, reason
from untax.check.findings import Finding
from untax.check.trainings import Training

BY_PLUGIN = ("disperse_", "delta_")
"""Keys that untax's own checks speak of, more plainly."""
OWN_SCHEDULES = ("one_cycle", "rex")
"""Axolotl's, beside those of transformers."""


def schema_findings(training: Training, device: str) -> list[Finding]:
    """What Axolotl would say of a training's YAML, and what it would not say.

    Args:
        training: the training.
        device: ``cuda`` or ``cpu``; without a GPU here, a recent one is assumed for ``cuda``.
    """
    lost = [Finding("fail", f"{training.config}: plugins", problem) for problem in _load_plugins(training.keys)]
    if lost:
        return lost
    try:
        dropped = list(_dropped(training.keys, _validated(training.keys, device, training.node.gpus)))
        refused = list[tuple[str, str]]()
    # Axolotl's validators raise what they like; pydantic's errors have places.
    except Exception as error:
        dropped, refused = _unknown(training.keys), list(_said(error))
    return [
        *(Finding("fail", f"{training.config}{place}", f"Axolotl refuses it: {text}") for place, text in refused),
        *(
            Finding(
                "fail",
                f"{training.config}: {key}",
                f"Axolotl does not know this key and would drop it without a word.{guess}",
                "Correct it, or leave it out.",
            )
            for key, guess in dropped
        ),
    ]


def _load_plugins(keys: Mapping[str, Any]) -> Iterator[str]:
    """Make the plugins' keys known to Axolotl's schema; what keeps a plugin from being loaded."""
    from axolotl.integrations.base import PluginManager, load_plugin

    manager = PluginManager.get_instance()
    manager.plugins.clear()
    for name in keys.get("plugins") or []:
        try:
            with quiet():
                manager.plugins[name] = load_plugin(name)
        # A plugin's import can fail in any way.
        except Exception as error:
            yield f"{name} cannot be loaded: {type(error).__name__}: {reason(error)}"


def _validated(keys: Mapping[str, Any], device: str, gpus: int) -> dict[str, Any]:
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    with quiet():
        capabilities, environment = _capabilities(device, gpus)
        cfg = DictDefault(copy.deepcopy(dict(keys)))
        return validate_config(cfg, capabilities=capabilities, env_capabilities=environment).to_dict()


def _capabilities(device: str, gpus: int) -> tuple[dict[str, Any], dict[str, Any]]:
    import torch

    here = device == "cuda" and torch.cuda.is_available()
    major, minor = torch.cuda.get_device_capability() if here else (9, 0)
    capable = device == "cuda" and major >= 8
    capabilities = {
        "bf16": capable,
        "fp8": False,
        "tf32": capable,
        "n_gpu": int(os.environ.get("WORLD_SIZE", gpus)),
        "compute_capability": f"sm_{major}{minor}" if device == "cuda" else "",
    }
    return capabilities, {"torch_version": str(torch.__version__).split("+", maxsplit=1)[0]}


def _said(error: Exception) -> Iterator[tuple[str, str]]:
    """(place, text) of each of pydantic's errors, or of the one."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        yield "", reason(error)
        return
    for entry in error.errors():
        place = ".".join(map(str, entry["loc"]))
        value = entry.get("input")
        given = f" (it is {value!r})" if place and isinstance(value, str | int | float) else ""
        yield f": {place}" if place else "", entry["msg"].removeprefix("Value error, ") + given


def trainer_findings(training: Training) -> list[Finding]:
    """A failure for each name that the schema takes as any text, and that the trainer would refuse."""
    from axolotl.utils.schemas.enums import CustomSupportedOptimizers
    from transformers import SchedulerType
    from transformers.training_args import OptimizerNames

    known = {
        "optimizer": [name.value for names in (OptimizerNames, CustomSupportedOptimizers) for name in names],
        "lr_scheduler": [*(name.value for name in SchedulerType), *OWN_SCHEDULES],
    }
    return [
        Finding(
            "fail",
            f"{training.config}: {key}",
            f"there is no {key} '{value}'.{_guess(value, names)}",
            "Correct it under training in untax.yaml.",
        )
        for key, names in known.items()
        if isinstance(value := training.keys.get(key), str) and value not in names
    ]


def _dropped(written: Any, validated: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Keys at any level that the schema does not keep, each with a near one that it has."""
    if isinstance(written, Mapping):
        known = _known_keys() if not at else list(validated or {})
        for name, value in written.items():
            if value is None or (not at and str(name).startswith(BY_PLUGIN)):
                continue
            kept = validated.get(name) if isinstance(validated, Mapping) else None
            if kept is None:
                yield f"{at}{name}", _guess(str(name), known)
            else:
                yield from _dropped(value, kept, f"{at}{name}.")
    elif isinstance(written, list) and isinstance(validated, list) and len(written) == len(validated):
        for index, (one, other) in enumerate(zip(written, validated, strict=True)):
            yield from _dropped(one, other, f"{at}{index}.")


def _unknown(written: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Keys of the top level that no schema has, where the values could not be validated."""
    known = _known_keys()
    return [
        (str(name), _guess(str(name), known))
        for name, value in written.items()
        if value is not None and name not in known
    ]


def _guess(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def _known_keys() -> list[str]:
    """Axolotl's keys and those of the plugins that are loaded."""
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.schemas.config import AxolotlInputConfig

    models = [AxolotlInputConfig, *map(_class, PluginManager.get_instance().get_input_args())]
    return [
        name for model in models for key, field in model.model_fields.items() for name in (key, field.alias) if name
    ]


def _class(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)
