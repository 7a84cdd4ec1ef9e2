"""Trainings on two ranks: their settings, running them, and reading what ``ranks.py`` recorded of them."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from toys import BASE, SFT_CONFIG, Workspace, sft_rows, write_jsonl

from . import float64, ranks
from .recording import Step, Tensors

LAMBDA = 0.01
STRONG = 1.0
"""Lambda of the squares, for the deltas are far below 1."""
STEPS = 3
RANKS = (0, 1)
FULL = {
    **dict.fromkeys(key for key in SFT_CONFIG if key == "adapter" or key.startswith("lora_")),
    "learning_rate": 0.001,
}
SHARDED = {
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
    "state_dict_type": "FULL_STATE_DICT",
    "reshard_after_forward": True,
}
FSDP2 = {"fsdp_version": 2, "fsdp_config": SHARDED, "base_model": "odd"}
L1 = {"delta_l1": LAMBDA}
L2 = {"delta_l2": STRONG}
TWICE = {"gradient_accumulation_steps": 2}


def checkpointing(*, reentrant: bool) -> dict[str, Any]:
    return {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}


TRAININGS: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {
        "ddp, reentrant checkpointing, accumulation": {**L1, **TWICE, **checkpointing(reentrant=True)},
        "fsdp2, rank 3": {**L1, **FSDP2, "lora_r": 3, "lora_alpha": 6},
    },
    "ddp": {
        "ddp": L1,
        "ddp, accumulation": {**L1, **TWICE},
        "ddp, reentrant checkpointing": {**L1, **checkpointing(reentrant=True)},
        "ddp, checkpointing": {**L1, **checkpointing(reentrant=False)},
        "ddp, checkpointing, accumulation": {**L1, **TWICE, **checkpointing(reentrant=False)},
        "ddp, full": {**FULL, **L1},
        "ddp, pruned": {**L1, "delta_sparsity": 0.6},
    },
    "fsdp2": {
        "fsdp2, accumulation": {**L1, **FSDP2, **TWICE},
        "fsdp2, checkpointing": {**L1, **FSDP2, "fsdp_config": {**SHARDED, "activation_checkpointing": True}},
        "fsdp2, rank 1, factors": {**L1, **FSDP2, "lora_r": 1, "lora_alpha": 2, "delta_target": "factors"},
        "fsdp2, l2": {**L2, **FSDP2},
        "fsdp2, pruned": {**L1, **FSDP2, "delta_sparsity": 0.6},
    },
    "fsdp2_full": {
        "fsdp2, full": {**FULL, **L1, **FSDP2},
        "fsdp2, full, l2, accumulation": {**FULL, **L2, **FSDP2, **TWICE},
        "fsdp2, full, ewc": {**FULL, **FSDP2, "delta_ewc": STRONG, "delta_ewc_fisher": "fisher.safetensors"},
        "fsdp2, full, reread": {
            **{**FULL, **L1, **FSDP2, "delta_base": "reread"},
            "fsdp_config": {**SHARDED, "cpu_ram_efficient_loading": True},
        },
    },
}


@dataclasses.dataclass
class Run:
    """One training as both ranks recorded it."""

    name: str
    folder: Path
    changes: dict[str, Any]

    @property
    def out(self) -> Path:
        return self.folder / f"out {self.name}"

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.out / "untax.json").read_text())

    def base(self) -> Any:
        return float64.load(self.folder / "odd" if "base_model" in self.changes else BASE)

    def step(self, index: int, rank: int) -> Step:
        parts = sections(self.folder / "records" / self.name / f"step{index}.{rank}")
        count = len({key.partition("/")[0] for key in parts["batch"]})
        batches = [
            {key.partition("/")[2]: t for key, t in parts["batch"].items() if key.startswith(f"{number}/")}
            for number in range(count)
        ]
        return Step(index, parts["weights"], batches, before=parts["before"], gradient=parts["gradient"])

    def end(self, rank: int) -> Tensors:
        return sections(self.folder / "records" / self.name / f"end.{rank}")["weights"]

    def told(self, rank: int) -> dict[str, Any]:
        return json.loads((self.folder / "records" / self.name / f"rank{rank}.json").read_text())

    def penalty(self) -> float64.Penalty:
        if self.changes.get("delta_target") == "factors":
            return lambda _, factors: LAMBDA * sum(factor.abs().sum() for factor in factors.values())
        if "delta_ewc" in self.changes:
            fisher = load_file(self.folder / "fisher.safetensors")
            return lambda deltas, _: STRONG / 2 * sum((fisher[name] * delta**2).sum() for name, delta in deltas.items())
        return float64.l1(LAMBDA) if "delta_l1" in self.changes else float64.l2(STRONG)


def sections(path: Path) -> dict[str, Tensors]:
    found: dict[str, Tensors] = {}
    for key, tensor in load_file(path).items():
        section, _, name = key.partition("/")
        found.setdefault(section, {})[name] = tensor
    return found


def odd_base(folder: Path) -> None:
    """The bundled model with 171 instead of 172 rows in its gates: two ranks cannot divide them evenly."""
    from transformers import AutoConfig, AutoModelForCausalLM

    state = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).state_dict()
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(BASE, intermediate_size=171))
    model.load_state_dict({name: state[name][tuple(map(slice, own.shape))] for name, own in model.state_dict().items()})
    model.save_pretrained(folder)


def run_all(folder: Path, trainings: dict[str, dict[str, Any]]) -> Path:
    workspace = Workspace(folder)
    lengths = random.Random(0)
    rows = [{**row, "output": row["output"] * lengths.randint(1, 5)} for row in sft_rows(24)]
    write_jsonl(folder / "sft.jsonl", rows)
    odd_base(folder / "odd")
    drawn = torch.Generator().manual_seed(0)
    weights = load_file(folder / "odd" / "model.safetensors")
    fisher = {name: torch.rand(weight.shape, generator=drawn) for name, weight in weights.items()}
    save_file(fisher, folder / "fisher.safetensors")
    plan = []
    for name, changes in trainings.items():
        (folder / "records" / name).mkdir(parents=True)
        fixed = {"delta_log_steps": 1, "max_steps": STEPS, "output_dir": f"out {name}", "tokenizer_config": str(BASE)}
        config = workspace.config(f"{name}.yaml", **fixed, **changes)
        plan.append({"config": config.name, "records": f"records/{name}", "port": ranks.free_port()})
    (folder / "plan.json").write_text(json.dumps(plan))
    ranks.start_ranks(Path(ranks.__file__), "plan.json", folder=folder)
    return folder
