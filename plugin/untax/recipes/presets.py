"""The papers' own settings as checked-in recipes: ``python -m untax.recipes.presets`` writes them again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from untax.recipes.graph import Layout
from untax.recipes.papers import dtm_sft, paft_preference, paft_sft, values
from untax.recipes.spec import DTM_MERGES, PAFT_MERGES, RunSpec, check_spec
from untax.recipes.write import write_run_folder

REPOSITORY = "untax"

ZEPHYR_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}"
)
"""Zephyr's chat format: plain text and the end-of-sequence token, so no token is added to the base."""

CHAT: dict[str, Any] = {
    "chat_template": "jinja",
    "chat_template_jinja": ZEPHYR_TEMPLATE,
    "special_tokens": {"pad_token": "</s>"},
}

PRESETS: dict[str, dict[str, Any]] = {
    "dtm-llama2-7b-tulu2": {
        "base": "meta-llama/Llama-2-7b-hf",
        "sft": [{"path": "allenai/tulu-v2-sft-mixture", "split": "train", "type": "alpaca"}],
        "first_turn": True,
        "arms": {"vanilla": {}, "dtm": {"clusters": 4, "merge": list(DTM_MERGES)}},
        "training": {"sft": {**values(dtm_sft()), "special_tokens": {"pad_token": "</s>"}}},
        "settings": "dtm",
        "dtype": "float16",
    },
    "paft-mistral-7b-zephyr": {
        "base": "mistralai/Mistral-7B-v0.1",
        "sft": [
            {
                "path": "HuggingFaceH4/ultrachat_200k",
                "split": "train_sft",
                "type": "chat_template",
                "field_messages": "messages",
            }
        ],
        "preference": [
            {
                "path": "HuggingFaceH4/ultrafeedback_binarized",
                "split": "train_prefs",
                "type": "chat_template.argilla_chat",
            }
        ],
        "arms": {"paft": {"delta_l1": 1e-4, "merge": list(PAFT_MERGES)}},
        "training": {"sft": {**values(paft_sft()), **CHAT}, "preference": {**values(paft_preference()), **CHAT}},
        "settings": "paft",
        "dtype": "bfloat16",
    },
}

NOTES = {
    "dtm-llama2-7b-tulu2": ["Disperse-Then-Merge, tables 1 and 4: Llama-2-7B on Tulu-V2-mix, K = 4 random clusters."],
    "paft-mistral-7b-zephyr": ["PAFT, table 1: Mistral-7B, UltraChat and UltraFeedback with the Zephyr recipe."],
}


def preset(name: str) -> RunSpec:
    """The spec of a checked-in recipe."""
    return check_spec(PRESETS[name], where=f"preset {name}")


def write_presets(repository: Path) -> None:
    """Write ``recipes/<name>/`` and ``mergekit_configs/<name>/`` of every preset into a checkout."""
    for name in PRESETS:
        write_run_folder(
            preset(name), repository, force=True, notes=NOTES[name], layout=Layout(name), shown_folder=REPOSITORY
        )


if __name__ == "__main__":
    write_presets(Path())
