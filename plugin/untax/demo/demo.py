"""``untax demo``: the whole job on the bundled model and data, as an ordinary run folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from untax.errors import UntaxError
from untax.files import new_folder
from untax.recipes.spec import SPEC_NAME, RunSpec, check_spec
from untax.recipes.write import spec_text, write_run_folder

BUNDLE = Path(__file__).parent
SCALES = [1.0, 0.75, 0.5]

ALPACA_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response:\n"
)
"""Axolotl's ``type: alpaca`` without an input, so that both trainings see one format."""

SFT = {
    "sequence_len": 320,
    "train_on_inputs": False,
    "adapter": "lora",
    "lora_r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "lora_target_linear": True,
    "num_epochs": 1,
    # Small batches cost a 260k-parameter model no time, and a sub-model with a quarter of the rows needs its steps.
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "optimizer": "adamw_torch",
    "learning_rate": 0.001,
    "lr_scheduler": "cosine",
    "warmup_ratio": 0.1,
    "weight_decay": 0.0,
    "logging_steps": 20,
}
PREFERENCE = {
    **{key: value for key, value in SFT.items() if key != "train_on_inputs"},
    "rl": "dpo",
    "rl_beta": 0.1,
    "sequence_len": 512,
    "micro_batch_size": 8,
    "logging_steps": 1,
}


def demo_spec() -> RunSpec:
    """The demo's recipe: every arm on the bundled base, data and suite."""
    content: dict[str, Any] = {
        "base": "./base",
        "device": "cpu",
        "sft": [{"path": "data/sft.jsonl", "type": "alpaca"}],
        "preference": [
            {
                "path": "data/preference.jsonl",
                "type": {
                    "field_prompt": "prompt",
                    "field_chosen": "chosen",
                    "field_rejected": "rejected",
                    "prompt_format": ALPACA_PROMPT,
                    # SFT tokenises a response apart, so it begins with a word-start token; DPO tokenises
                    # prompt and response as one text, where only a space gives the same token.
                    "chosen_format": " {chosen}",
                    "rejected_format": " {rejected}",
                },
            }
        ],
        "arms": {
            "vanilla": {"scales": [*SCALES, 0.25]},  # the curve that the others are compared with
            "dtm": {"clusters": 4, "merge": ["average"], "scales": SCALES},
            "paft": {"delta_l1": 3e-4, "merge": ["ties"], "scales": SCALES},
            "sequential": {},
            "parallel": {"merge": ["ties"]},
        },
        "training": {"sft": SFT, "preference": PREFERENCE},
        "dtype": "float32",
        "suite": "demo",
    }
    return check_spec(content, where="the demo's recipe")


def prepare(out: Path) -> None:
    """Make ``out`` the demo's run folder: base and data copied, recipe and YAMLs written.

    What is there already stays, so that an unfinished demo is continued.

    Raises:
        UntaxError: ``out`` holds something else.
    """
    spec = demo_spec()
    _refuse_other_folder(out, spec)
    for name in ("base", "data"):
        if not (out / name).exists():
            with new_folder(out / name) as part:
                for file in (BUNDLE / name).iterdir():
                    shutil.copyfile(file, part / file.name)
    if not (out / SPEC_NAME).exists():
        write_run_folder(spec, out, force=True)


def _refuse_other_folder(out: Path, spec: RunSpec) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UntaxError("The output path is a file.", where=out, fix="Name a folder with --out.")
    if (out / SPEC_NAME).exists():
        if (out / SPEC_NAME).read_text(encoding="utf-8") != spec_text(spec):
            raise UntaxError(
                "The folder holds another run, or a demo whose recipe was edited.",
                where=out / SPEC_NAME,
                fix="Name a new folder with --out, or run this one with `untax run`.",
            )
    elif {entry.name for entry in out.iterdir() if not entry.name.startswith(".")} - {
        "base",
        "data",
        "recipes",
        "mergekit_configs",
    }:
        raise UntaxError("The folder holds something else.", where=out, fix="Name a new or empty folder with --out.")
