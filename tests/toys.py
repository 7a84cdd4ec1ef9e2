"""Toys for tests: tiny data sets, tiny configurations, and Axolotl in this process as if it were a new one."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

BASE = Path(__file__).resolve().parents[1] / "plugin" / "untax" / "demo" / "base"

SFT_CONFIG: dict[str, Any] = {
    "plugins": ["untax.DeltaPenaltyPlugin"],
    "base_model": str(BASE),
    "datasets": [{"path": "sft.jsonl", "type": "alpaca"}],
    "output_dir": "out",
    "dataset_prepared_path": "prepared",
    "dataset_num_proc": 1,
    "sequence_len": 256,
    "train_on_inputs": False,
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0,
    "lora_target_linear": True,
    "lora_mlp_kernel": False,
    "lora_qkv_kernel": False,
    "lora_o_kernel": False,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_steps": 2,
    "learning_rate": 0.01,
    "optimizer": "adamw_torch",
    "lr_scheduler": "constant",
    "bf16": False,
    "fp16": False,
    "tf32": False,
    "seed": 42,
    "logging_steps": 1,
    "save_strategy": "no",
    "special_tokens": {"pad_token": "<unk>"},
}

DPO_CHANGES: dict[str, Any] = {
    "rl": "dpo",
    "rl_beta": 0.1,
    "datasets": [
        {
            "path": "preference.jsonl",
            "type": {
                "field_prompt": "prompt",
                "field_chosen": "chosen",
                "field_rejected": "rejected",
                "prompt_format": "### Instruction:\n{prompt}\n\n### Response:\n",
                "chosen_format": "{chosen}",
                "rejected_format": "{rejected}",
            },
        }
    ],
}


def sft_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "instruction": f"Tell me about toy {index}.",
            "input": "",
            "output": f"Toy {index} is red and has {index} wheels.",
        }
        for index in range(start, start + count)
    ]


def preference_rows(count: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"Is toy {index} nice?", "chosen": f"Yes, toy {index} is nice.", "rejected": f"No {index}."}
        for index in range(count)
    ]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclasses.dataclass
class Workspace:
    """A folder with tiny data sets in which configurations are written and commands run."""

    folder: Path

    def config(self, name: str = "train.yaml", *, dpo: bool = False, **changes: Any) -> Path:
        """Write the SFT (or DPO) configuration with changes; None leaves a key out."""
        merged = {**SFT_CONFIG, **(DPO_CHANGES if dpo else {}), **changes}
        path = self.folder / name
        path.write_text(yaml.safe_dump({key: value for key, value in merged.items() if value is not None}))
        return path

    def manifest(self, folder: str = "out") -> dict[str, Any]:
        return json.loads((self.folder / folder / "untax.json").read_text())

    def files(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment's ``bin`` in this folder."""
        program = Path(sys.executable).parent / command[0]
        return subprocess.run(
            [str(program), *command[1:]],
            cwd=self.folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )


@contextlib.contextmanager
def fresh_axolotl() -> Iterator[None]:
    """Axolotl as a new process would find it: no plugin, no state of an earlier training."""
    import torch
    from accelerate.state import AcceleratorState, GradientState
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.tee import close_debug_log

    environment, argv, handler = dict(os.environ), sys.argv, signal.getsignal(signal.SIGINT)
    plugins, threads = PluginManager.get_instance().plugins, torch.get_num_threads()
    plugins.clear()
    torch.set_num_threads(1)
    gc.freeze()  # Axolotl collects garbage at every DPO micro-batch: not through all of torch's objects again.
    sys.argv = ["axolotl"]
    try:
        yield
    finally:
        plugins.clear()
        AcceleratorState._reset_state()
        GradientState._reset_state()
        close_debug_log()
        torch.set_num_threads(threads)
        gc.unfreeze()
        sys.argv = argv
        signal.signal(signal.SIGINT, handler)
        os.environ.clear()
        os.environ.update(environment)
