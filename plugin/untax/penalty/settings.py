"""The ``delta_*`` keys, checked before Axolotl's own validation, and by whoever reads such a YAML."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from untax.errors import UntaxError, near_names
from untax.plugins import registry

PREFIX = "delta_"
TARGETS = ("product", "factors")
SCHEDULES = ("constant", "linear_warmup")
BASES = ("keep", "reread")
DEFAULT_LOG_STEPS = 10


@dataclass(frozen=True)
class PenaltySettings:
    """Which penalties are on what, and how strongly.

    Attributes:
        lambdas: {key: lambda}, those of lambda 0 left out.
        target: ``product``, the delta s*B@A (PAFT, equation 1), or ``factors``, A and B each for itself.
        modules: names (ends of module names) or one regular expression, as in PEFT's target_modules; None is all.
        schedule: ``constant``, or ``linear_warmup``: lambda rises over the learning rate's warm-up.
        ewc_fisher: the file with the diagonal Fisher information of the base.
        sparsity: share of exact zeros that LoRA's delta is pruned to, averaged over the layers; None: no pruning.
        base: without an adapter: ``keep`` the pretrained weights in memory, or ``reread`` them from the base's files.
        log_steps: norm and sparsity are logged with the first loss that is logged this many optimizer steps after the
            last time; 0: never.
    """

    lambdas: Mapping[str, float] = field(default_factory=dict)
    target: str = "product"
    modules: tuple[str, ...] | str | None = None
    schedule: str = "constant"
    ewc_fisher: str | None = None
    sparsity: float | None = None
    base: str = "keep"
    log_steps: int = DEFAULT_LOG_STEPS

    @property
    def active(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.lambdas) or self.sparsity is not None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the penalty, as the manifest records it."""
        chosen = list(self.modules) if isinstance(self.modules, tuple) else self.modules
        return {
            **{key.removeprefix(PREFIX): weight for key, weight in self.lambdas.items()},
            "target": self.target,
            "schedule": self.schedule,
            "only": chosen,
            "sparsity_target": self.sparsity,
        }

    def covers(self, tensor: str) -> bool:
        """Whether ``delta_modules`` takes a tensor of the base."""
        module = tensor.rpartition(".")[0]
        if isinstance(self.modules, str):
            return re.fullmatch(self.modules, module) is not None
        return self.modules is None or any(ends_with(module, name) for name in self.modules)


def read_settings(cfg: Mapping[str, Any], *, where: object) -> PenaltySettings:
    """The ``delta_*`` keys of an Axolotl configuration.

    Raises:
        UntaxError: all unknown keys and wrong values, in one error.
    """
    given = {key: value for key, value in cfg.items() if str(key).startswith(PREFIX) and value is not None}
    penalties = _registered()
    checks = {**dict.fromkeys(penalties, _lambda_problem), **_OPTIONS}
    problems = [f"unknown key {key}. {near_names(key, list(checks))}" for key in given if key not in checks]
    problems += [
        f"{key}: {problem}" for key, value in given.items() if key in checks and (problem := checks[key](value))
    ]
    lambdas = {key: float(given[key]) for key in penalties if key in given and not _lambda_problem(given[key])}
    problems += _conflicts(cfg, given, lambdas)
    if problems:
        raise UntaxError(
            "These penalty keys are wrong:\n  - " + "\n  - ".join(problems),
            where=where,
            fix="Correct them in the YAML" + ("; PAFT uses delta_l1: 0.0001 or 0.001." if "delta_l1" in given else "."),
        )
    options = {key.removeprefix(PREFIX): given[key] for key in _OPTIONS if key in given}
    if not _takes_fisher(lambdas):
        options.pop("ewc_fisher", None)
    if isinstance(options.get("modules"), list):
        options["modules"] = tuple(options["modules"])
    return PenaltySettings({key: weight for key, weight in lambdas.items() if weight}, **options)


def _registered() -> list[str]:
    """The keys of all penalties.

    Raises:
        UntaxError: a plugin registers one that could not be a key of its own.
    """
    names = list(registry("delta_penalties"))
    wrong = [name for name in names if not name.startswith(PREFIX) or name in _OPTIONS]
    if wrong:
        raise UntaxError(
            f"The penalty '{wrong[0]}' cannot be a key: it must begin with {PREFIX} and be no key of another kind.",
            where="a plugin's hook delta_penalties",
            fix="Rename it there, or uninstall that plugin.",
        )
    return names


def _takes_fisher(lambdas: Mapping[str, float]) -> bool:
    """Whether a penalty that is on may want the Fisher information: EWC, or one of a plugin."""
    return any(weight and key not in ("delta_l1", "delta_l2") for key, weight in lambdas.items())


def _conflicts(cfg: Mapping[str, Any], given: Mapping[str, Any], lambdas: Mapping[str, float]) -> list[str]:
    problems = []
    options = [key for key in given if key in _OPTIONS]
    if options and not lambdas and "delta_sparsity" not in given:
        problems.append(f"{', '.join(options)}: no penalty is asked for; set delta_l1, delta_l2 or delta_ewc")
    if "delta_sparsity" in given and not cfg.get("adapter"):
        problems.append("delta_sparsity: it prunes the factors of a LoRA adapter, and there is no adapter")
    if lambdas.get("delta_ewc") and "delta_ewc_fisher" not in given:
        problems.append("delta_ewc: delta_ewc_fisher is missing: the file with the base's diagonal Fisher information")
    if "delta_ewc_fisher" in given and not set(lambdas) - {"delta_l1", "delta_l2"}:
        problems.append("delta_ewc_fisher: delta_ewc, its lambda, is missing")
    if given.get("delta_target") == "factors":
        if lambdas.get("delta_ewc"):
            problems.append(
                "delta_target: factors: the Fisher information is of the base's weights, not of the factors"
            )
        if not cfg.get("adapter"):
            problems.append("delta_target: factors: without an adapter there are no factors")
    if "delta_base" in given and cfg.get("adapter"):
        problems.append(
            "delta_base: with an adapter the pretrained weights stay in the model anyway; leave this key out"
        )
    return problems


def _lambda_problem(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = " (YAML reads 1e-4 as text: write 0.0001 or 1.0e-4)" if isinstance(value, str) else ""
        return f"{value!r} is no number{hint}"
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    return None if 0 <= number < math.inf else f"{value}; lambda is a finite number >= 0"


def _one_of(known: tuple[str, ...]) -> Callable[[Any], str | None]:
    return lambda value: None if value in known else f"{value!r}; known are {' and '.join(known)}"


def _modules_problem(value: Any) -> str | None:
    if isinstance(value, str) and value:
        try:
            re.compile(value)
        except re.error as error:
            return f"{value!r} is no regular expression: {error}"
        return None
    if isinstance(value, list) and value and all(isinstance(name, str) and name for name in value):
        return None
    return f"{value!r}; give a list of module names, such as [q_proj, down_proj], or one regular expression"


def _file_problem(value: Any) -> str | None:
    is_file = isinstance(value, str) and value.endswith(".safetensors")
    return None if is_file else f"{value!r} is no path of a .safetensors file"


def _steps_problem(value: Any) -> str | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return None if whole else f"{value!r} is no number of steps (0: never)"


def _share_problem(value: Any) -> str | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return None if number and 0 < value < 1 else f"{value!r} is no share between 0 and 1, such as 0.9"


def ends_with(module: str, name: str) -> bool:
    """Whether a module's name ends in these parts, as PEFT takes ``target_modules``."""
    return module == name or module.endswith(f".{name}")


_OPTIONS: dict[str, Callable[[Any], str | None]] = {
    "delta_target": _one_of(TARGETS),
    "delta_modules": _modules_problem,
    "delta_schedule": _one_of(SCHEDULES),
    "delta_ewc_fisher": _file_problem,
    "delta_sparsity": _share_problem,
    "delta_base": _one_of(BASES),
    "delta_log_steps": _steps_problem,
}
OPTION_KEYS = tuple(_OPTIONS)
