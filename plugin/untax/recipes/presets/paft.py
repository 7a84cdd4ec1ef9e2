"""PAFT: the Zephyr recipe on its two bases, with DPO and with ORPO."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from untax.recipes.papers import METHOD_ORIGINS, Setting, Settings, chat, paft_preference, paft_sft, values
from untax.recipes.preference import METHODS
from untax.recipes.presets import bases, corpora
from untax.recipes.presets.bases import Base
from untax.recipes.presets.preset import Preset

MERGES = ["slerp", "task_arithmetic", "ties", "dare_ties", "linear"]
LAMBDA = 1e-4
OPEN = (
    "The paper validates lambda 0.0001 and 0.001 and does not say which row has which: 0.0001 here.",
    "What the paper leaves open and we chose: density 0.5, equal weights, t = 0.5, weight 1 for each delta in task "
    "arithmetic, and which turns carry loss (the assistant's).",
    "The Zephyr recipe's SFT and DPO by LoRA load the base in 4 bits (QLoRA) and pack rows; here it is in bfloat16, "
    "a row to a sequence. `load_in_4bit: true` with `adapter: qlora`, in `axolotl:` of `untax.yaml`, makes it QLoRA.",
)


ORPO: Settings = {
    "rl": Setting("orpo", METHOD_ORIGINS["orpo"]),
    **{key: one for key, one in paft_preference().items() if key not in METHODS["dpo"].keys and key != "rl"},
    **METHODS["orpo"].defaults,
}
"""The Zephyr recipe's DPO with what is ORPO's own, of which PAFT's appendix A says nothing."""


def _arms(of: list[str]) -> dict[str, Any]:
    rows = {"individual": {"of": of, "delta_l1": LAMBDA}} if of else {}
    return {
        **rows,
        "sequential": {"sft": ["sparse", "dense"], "delta_l1": LAMBDA},
        "parallel": {"merge": MERGES},
        "paft": {"delta_l1": LAMBDA, "merge": MERGES},
    }


def _content(base: Base, preference: Settings, arms: dict[str, Any]) -> dict[str, Any]:
    format_of_chat = values(chat(base.pad_token))
    return {
        "base": base.path,
        "sft": deepcopy(list(corpora.ULTRACHAT.entries)),
        "preference": deepcopy(list(corpora.ULTRAFEEDBACK.entries)),
        "arms": arms,
        "training": {
            "sft": {**values(paft_sft()), **format_of_chat},
            "preference": {**values(preference), **format_of_chat},
        },
        "settings": "paft",
    }


def _dpo(name: str, base: Base, result: str) -> Preset:
    return Preset(
        name,
        f"PAFT: {base.name} with the Zephyr recipe",
        "PAFT table 1",
        base,
        _content(base, paft_preference(), _arms(["sft-sparse", "sft", "dpo"])),
        corpora.ULTRACHAT,
        (
            f"All rows of {base.name} in table 1: PAFT and parallel SFT + DPO in five merges, sequential and single "
            f"trainings, sparse and dense. {result}",
        ),
        preference=corpora.ULTRAFEEDBACK,
        differs=OPEN,
    )


def _orpo(name: str, base: Base, rows: str, text: str) -> Preset:
    return Preset(
        name,
        f"PAFT with ORPO: {base.name} with the Zephyr recipe",
        rows,
        base,
        _content(base, ORPO, _arms([])),
        corpora.ULTRACHAT,
        (text,),
        preference=corpora.ULTRAFEEDBACK,
        differs=(
            "PAFT gives no setting of ORPO: lambda and learning rate are TRL's, the rest is the recipe's DPO.",
            *OPEN,
        ),
    )


PRESETS = (
    _dpo("paft-mistral-7b-zephyr", bases.MISTRAL_7B, "In the paper PAFT with TIES is best (average 0.652)."),
    _dpo("paft-llama3-8b-zephyr", bases.LLAMA3_8B, "In the paper PAFT with task arithmetic is best (average 0.663)."),
    _orpo(
        "paft-llama3-8b-zephyr-orpo",
        bases.LLAMA3_8B,
        "PAFT table 4",
        "All rows of table 4: PAFT and parallel SFT + ORPO in five merges, and sequential training, sparse and dense.",
    ),
    _orpo(
        "paft-mistral-7b-zephyr-orpo",
        bases.MISTRAL_7B,
        "ours, after PAFT table 4",
        "Table 4's rows on the paper's other base, which the paper trains by DPO only.",
    ),
)
