"""The papers' training settings, each with where it comes from; what they leave open is marked as ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

OURS = "ours"


@dataclass(frozen=True)
class Setting:
    """A value and where it comes from: a paper's table, or ``ours`` with the reason."""

    value: Any
    origin: str


Settings = dict[str, Setting]


def dtm_sft(learning_rate: float = 3e-4) -> Settings:
    """Disperse-Then-Merge, table 10 (Llama-2-7B; Mistral-7B has 5e-5) and appendix A.3."""
    table = "DTM table 10"
    return {
        "sequence_len": Setting(1024, table),
        "train_on_inputs": Setting(False, "DTM A.3: the loss is on the output only"),
        "adapter": Setting("lora", table),
        "lora_r": Setting(16, table),
        "lora_alpha": Setting(16, table),
        "lora_dropout": Setting(0.05, table),
        "lora_target_modules": Setting(["gate_proj", "up_proj", "down_proj"], table),
        "num_epochs": Setting(3, "DTM A.3"),
        "micro_batch_size": Setting(4, "ours: 4 x 4 = table 10's batch of 16 on one GPU"),
        "gradient_accumulation_steps": Setting(4, "ours: see micro_batch_size"),
        "optimizer": Setting("adamw_torch", table),
        "adam_beta1": Setting(0.9, table),
        "adam_beta2": Setting(0.95, table),
        "learning_rate": Setting(learning_rate, table),
        "lr_scheduler": Setting("cosine", f"{table}, to 0"),
        "warmup_steps": Setting(100, table),
        "weight_decay": Setting(0.0, table),
    }


def paft_sft() -> Settings:
    """PAFT, section 3.1: the Zephyr recipe (alignment-handbook, zephyr-7b-beta, QLoRA SFT)."""
    zephyr = "Zephyr recipe, SFT"
    return {
        "sequence_len": Setting(2048, zephyr),
        "train_on_inputs": Setting(False, "ours: the loss is on the assistant's turns"),
        "adapter": Setting("lora", "PAFT 2.2"),
        "lora_r": Setting(16, zephyr),
        "lora_alpha": Setting(16, zephyr),
        "lora_dropout": Setting(0.05, zephyr),
        "lora_target_linear": Setting(True, f"{zephyr}: all linear layers"),
        "num_epochs": Setting(1, zephyr),
        "micro_batch_size": Setting(4, zephyr),
        "gradient_accumulation_steps": Setting(4, "ours: one GPU"),
        "optimizer": Setting("adamw_torch", zephyr),
        "learning_rate": Setting(2e-4, zephyr),
        "lr_scheduler": Setting("cosine", zephyr),
        "warmup_ratio": Setting(0.1, zephyr),
        "weight_decay": Setting(0.0, OURS),
    }


def paft_preference() -> Settings:
    """PAFT, section 3.1: the Zephyr recipe (alignment-handbook, zephyr-7b-beta, QLoRA DPO)."""
    zephyr = "Zephyr recipe, DPO"
    return {
        "rl": Setting("dpo", "PAFT 3.1"),
        "rl_beta": Setting(0.01, zephyr),
        "sequence_len": Setting(1024, zephyr),
        "adapter": Setting("lora", "PAFT 2.2"),
        "lora_r": Setting(128, zephyr),
        "lora_alpha": Setting(128, zephyr),
        "lora_dropout": Setting(0.05, zephyr),
        "lora_target_linear": Setting(True, f"{zephyr}: all linear layers"),
        "num_epochs": Setting(1, zephyr),
        "micro_batch_size": Setting(4, zephyr),
        "gradient_accumulation_steps": Setting(4, zephyr),
        "optimizer": Setting("adamw_torch", "ours: the recipe pages AdamW"),
        "learning_rate": Setting(5e-6, zephyr),
        "lr_scheduler": Setting("cosine", zephyr),
        "warmup_ratio": Setting(0.1, zephyr),
        "weight_decay": Setting(0.0, OURS),
    }


def device_settings(device: str) -> Settings:
    """Precision, kernels and checkpoints for ``cpu`` or ``cuda``; none of it is in the papers."""
    if device == "cpu":
        return {
            "bf16": Setting(False, "ours: full precision on a CPU"),
            "fp16": Setting(False, OURS),
            "tf32": Setting(False, OURS),
            "lora_mlp_kernel": Setting(False, "ours: Axolotl's Triton kernels need a GPU"),
            "lora_qkv_kernel": Setting(False, OURS),
            "lora_o_kernel": Setting(False, OURS),
            "dataset_num_proc": Setting(1, "ours: starting workers costs more than it saves on small data"),
            "dataloader_num_workers": Setting(0, OURS),
            "save_strategy": Setting("no", "ours: short runs start over"),
        }
    return {
        "bf16": Setting("auto", "ours: bfloat16 where the GPU has it, else float16 as in DTM table 10"),
        "tf32": Setting(True, OURS),
        "gradient_checkpointing": Setting(True, "ours: trades a third more time for most of the activations' memory"),
        "saves_per_epoch": Setting(1, OURS),
        "save_total_limit": Setting(1, OURS),
        "auto_resume_from_checkpoints": Setting(True, "ours: the same command continues an interrupted training"),
    }


def values(settings: Settings) -> dict[str, Any]:
    """The plain Axolotl keys of ``settings``."""
    return {key: setting.value for key, setting in settings.items()}


def origin(key: str, value: Any, *, settings: str | None, kind: str, device: str) -> str:
    """Where the value of an Axolotl key comes from, or nothing when the user chose another.

    Args:
        key: the key.
        value: its value.
        settings: the paper that the recipe's settings were taken from: ``dtm``, ``paft`` or None.
        kind: the training: ``sft`` or ``preference``.
        device: ``cpu`` or ``cuda``.
    """
    papers = {
        ("dtm", "sft"): (dtm_sft(), dtm_sft(5e-5)),
        ("paft", "sft"): (paft_sft(),),
        ("paft", "preference"): (paft_preference(),),
    }
    known = [*papers.get((settings or "", kind), ()), device_settings(device)]
    found = (one[key] for one in known if key in one and one[key].value == value)
    return next((setting.origin for setting in found), "")
