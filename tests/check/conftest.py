"""Run folders with tiny data on the bundled base."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toys import DPO_CHANGES, preference_rows, sft_rows, write_jsonl
from untax.recipes.spec import check_spec
from untax.recipes.write import write_run_folder

TRAINING = {
    "sequence_len": 256,
    "train_on_inputs": False,
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    "num_epochs": 2,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.001,
    "warmup_steps": 2,
    "special_tokens": {"pad_token": "<unk>"},
}


@pytest.fixture
def run_folder(tmp_path: Path, base_model: Path) -> Callable[..., Path]:
    """Make one; keys of untax.yaml can be given, and the rows of its two files."""

    def make(
        *, sft: list[dict[str, Any]] | None = None, preference: list[dict[str, Any]] | None = None, **changes: Any
    ) -> Path:
        folder = tmp_path / "run"
        if not (folder / "base").exists():
            shutil.copytree(base_model, folder / "base")
        write_jsonl(folder / "sft.jsonl", sft_rows(24) if sft is None else sft)
        write_jsonl(folder / "preference.jsonl", preference_rows(16) if preference is None else preference)
        content = {
            "base": "./base",
            "device": "cpu",
            "sft": [{"path": "sft.jsonl", "type": "alpaca"}],
            "preference": DPO_CHANGES["datasets"],
            "arms": {"dtm": {"clusters": 2}, "paft": {}},
            "training": {"sft": TRAINING, "preference": {**TRAINING, "rl": "dpo"}},
            **changes,
        }
        write_run_folder(check_spec(content, where="test", folder=folder), folder, force=True)
        return folder

    return make
