"""Open bases and mixes of today, with both methods and their combination: no paper's rows, but its settings."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from untax.recipes.papers import (
    Settings,
    chat,
    current_preference,
    current_sft,
    paft_preference,
    paft_sft,
    small_preference,
    small_sft,
    values,
)
from untax.recipes.presets import bases, corpora
from untax.recipes.presets.bases import Base
from untax.recipes.presets.corpora import Corpus
from untax.recipes.presets.preset import Preset

ARMS: dict[str, Any] = {
    "vanilla": {},
    "dtm": {"clusters": 4},
    "paft": {"delta_l1": 1e-4},
    "dtm-paft": {"clusters": 4, "delta_l1": 1e-4},
}
OURS = (
    "No paper trains this pair. The settings are those of PAFT's Zephyr recipe, for DTM too; what differs from it is "
    "marked as ours, with the reason, beside the value.",
    "The chat format is Zephyr's: plain text and the base's end-of-sequence token. LoRA trains no embeddings, so "
    "tokens that the base has not seen in pretraining would stay untrained; and there is no thinking block in it.",
    "All turns of a dialogue are trained on (`first_turn: true` would cut it as DTM A.1 does).",
)


def _content(base: Base, sft: Corpus, preference: Corpus, changed: tuple[Settings, Settings]) -> dict[str, Any]:
    format_of_chat = chat(base.pad_token)
    return {
        "base": base.path,
        "sft": deepcopy(list(sft.entries)),
        "preference": deepcopy(list(preference.entries)),
        "arms": deepcopy(ARMS),
        "training": {
            "sft": values({**paft_sft(), **current_sft(), **changed[0], **format_of_chat}),
            "preference": values({**paft_preference(), **current_preference(), **changed[1], **format_of_chat}),
        },
        "settings": "paft",
    }


def _preset(
    name: str, base: Base, sft: Corpus, preference: Corpus, text: str, changed: tuple[Settings, Settings] = ({}, {})
) -> Preset:
    return Preset(
        name,
        f"{base.name} on {sft.name}",
        "ours",
        base,
        _content(base, sft, preference, changed),
        sft,
        (text,),
        preference=preference,
        differs=OURS,
    )


PRESETS = (
    _preset(
        "smollm2-135m-smoltalk",
        bases.SMOLLM2_135M,
        corpora.SMOL_SMOLTALK,
        corpora.ULTRAFEEDBACK_CLEANED,
        "The smallest pair that is worth a GPU: the base, the mix that its makers made for it, and the pairs of "
        "their DPO. By the estimate below all arms together are a matter of hours on one GPU.",
        (small_sft(), small_preference()),
    ),
    _preset(
        "olmo2-1b-tulu3",
        bases.OLMO2_1B,
        corpora.TULU3_OLMO2,
        corpora.OLMO2_PAIRS,
        "A base whose pretraining data is open too, so that the tax can be measured on the very text that it was "
        "trained on; mix and pairs are those that its makers post-train it on.",
    ),
    _preset(
        "qwen3-4b-smoltalk",
        bases.QWEN3_4B,
        corpora.SMOLTALK,
        corpora.ULTRAFEEDBACK_CLEANED,
        "A base of 4B parameters on the largest open mix of SmolLM2.",
    ),
    _preset(
        "qwen3-8b-tulu3",
        bases.QWEN3_8B,
        corpora.TULU3,
        corpora.TULU3_PAIRS,
        "A base of 8B parameters without a gate, on the mix and the pairs of Tulu 3.",
    ),
)
