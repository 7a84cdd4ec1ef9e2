"""The ``delta_*`` keys, checked before Axolotl's own validation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from untax.errors import UntaxError, near_names
from untax.plugins import registry

PREFIX = "delta_"


def read_lambdas(cfg: Mapping[str, Any], *, where: object) -> dict[str, float]:
    """{key: lambda} of the penalties asked for, those with lambda 0 left out.

    Raises:
        UntaxError: all unknown keys and all values that are no finite number >= 0, in one error.
    """
    given = {key: value for key, value in cfg.items() if key.startswith(PREFIX) and value is not None}
    known = list(registry("delta_penalties"))
    problems = [f"unknown key {key}. {near_names(key, known)}" for key in given if key not in known]
    problems += [problem for key, value in given.items() if key in known and (problem := _problem(key, value))]
    if problems:
        raise UntaxError(
            "These penalty keys are wrong:\n  - " + "\n  - ".join(problems),
            where=where,
            fix="Correct them in the YAML; PAFT uses delta_l1: 0.0001 or 0.001.",
        )
    return {key: float(value) for key, value in given.items() if value}


def check_training(cfg: Mapping[str, Any], *, where: object) -> None:
    """Refuse trainings whose delta is not s*B@A, or whose gradients are out of reach, before anything is loaded.

    Raises:
        UntaxError: naming the key.
    """
    if cfg.get("adapter") not in ("lora", "qlora"):
        problem, key = f"the penalty is on LoRA's delta, and the adapter is {cfg.get('adapter')!r}", "adapter"
    elif cfg.get("peft_use_dora"):
        problem, key = "DoRA's delta is not s*B@A", "peft_use_dora"
    elif cfg.get("relora") or cfg.get("relora_steps"):
        problem, key = "ReLoRA merges the delta into the base as it trains", "relora"
    elif cfg.get("deepspeed") or cfg.get("fsdp") or cfg.get("fsdp_config"):
        problem, key = "its factors or gradients would be spread over the ranks", "deepspeed, fsdp, fsdp_config"
    else:
        return
    raise UntaxError(
        f"delta_l1 cannot be used in this training: {problem}.",
        where=f"{where}: {key}",
        fix="Train plain LoRA (adapter: lora or qlora; several GPUs: DDP), or leave delta_l1 out.",
    )


def _problem(key: str, value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = " (YAML reads 1e-4 as text: write 0.0001 or 1.0e-4)" if isinstance(value, str) else ""
        return f"{key}: {value!r} is no number{hint}"
    if math.isnan(value) or math.isinf(value) or value < 0:
        return f"{key}: {value}; lambda is a finite number >= 0"
    return None
