"""What the options of ``untax recipe`` stand for: an arm with its settings, and the arms that come with it."""

from __future__ import annotations

from typing import Any

from untax.recipes.arms import KINDS
from untax.recipes.papers import Settings, dtm_sft, paft_preference, paft_sft, values
from untax.recipes.preference import METHODS

PAFT_KINDS = ("individual", "sequential", "parallel", "paft", "dtm-paft")
"""The arms of PAFT, and the one that trains with its settings; the others are Disperse-Then-Merge's."""


def paper_of(kind: str) -> str:
    """The paper whose settings an arm has: ``dtm`` or ``paft``."""
    return "paft" if kind in PAFT_KINDS else "dtm"


def sft_settings(paper: str) -> Settings:
    """SFT as the paper has it."""
    return dtm_sft() if paper == "dtm" else paft_sft()


def preference_settings(methods: list[str]) -> dict[str, dict[str, Any]]:
    """The sections of ``training`` for these methods: DPO's of the Zephyr recipe, and what differs for each other."""
    others = [METHODS[name] for name in methods if name in METHODS and name != "dpo"]
    return {"preference": values(paft_preference()), **{method.name: values(method.defaults) for method in others}}


def arm_settings(kind: str, given: dict[str, Any], *, learning_rate: float, seed: int) -> dict[str, Any]:
    """An arm's settings from options, of those that it has.

    Args:
        kind: the arm.
        given: options by the name of the setting; None where one was not given.
        learning_rate: of SFT, around which a soup's runs lie.
        seed: of the trainings.
    """
    known = KINDS[kind].model_fields
    settings = {key: value for key, value in given.items() if key in known and value is not None}
    if kind == "soup":
        settings.setdefault("runs", soup_runs(learning_rate, seed))
    if kind == "individual":
        settings.setdefault("of", ["sft", "sft-sparse", *(given.get("preference") or ["dpo"])])
    return settings


def soup_runs(learning_rate: float, seed: int) -> list[dict[str, Any]]:
    """Four runs around the recipe's own; the paper says that hyper-parameters differ, but not which."""
    return [
        {},
        {"learning_rate": learning_rate / 2},
        {"learning_rate": learning_rate * 2},
        {"lora_dropout": 0.1, "seed": seed + 1},
    ]
