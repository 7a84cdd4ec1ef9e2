"""The papers' training settings, each with where it comes from; what they leave open is marked as ours."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

ZEPHYR_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}"
)
"""Zephyr's chat format: plain text and the end-of-sequence token, so no token is added to the base."""


@dataclass(frozen=True)
class Setting:
    """A value and where it comes from: a paper's table, a recipe that a paper names, or ``ours: `` and the reason."""

    value: Any
    origin: str


Settings = dict[str, Setting]

WHEN_SAVED = ("saves_per_epoch", "save_steps", "save_strategy")
"""When checkpoints are saved: three keys that Axolotl refuses beside each other, or of which it heeds one."""


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
        "weight_decay": Setting(0.0, "ours: the recipe names none"),
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
        "weight_decay": Setting(0.0, "ours: the recipe names none"),
    }


def chat(pad_token: str | None) -> Settings:
    """The chat format of the Zephyr recipe.

    Args:
        pad_token: for a base that has none.
    """
    padding = {} if pad_token is None else {"special_tokens": padded_with(pad_token)}
    return {
        "chat_template": Setting("jinja", "Zephyr recipe: its format is not one of Axolotl's"),
        "chat_template_jinja": Setting(ZEPHYR_TEMPLATE, "Zephyr recipe: plain text, no token is added, no thinking"),
        **padding,
    }


def padded_with(token: str) -> Setting:
    """A padding token for a base that has none; the loss is not on padding."""
    return Setting({"pad_token": token}, "ours: the base has no padding token")


def current_sft() -> Settings:
    """What the recipes for current bases have other than the Zephyr recipe's SFT."""
    return {
        "gradient_accumulation_steps": Setting(8, "ours: 4 x 8 = 32 rows a step; these mixes have many more rows"),
    }


def current_preference() -> Settings:
    """What the recipes for current bases have other than the Zephyr recipe's DPO."""
    return {
        "sequence_len": Setting(2048, "ours: pairs of current mixes are longer than 1024 tokens"),
        "micro_batch_size": Setting(2, "ours: 2 x 8 = 16 pairs a step, as in the Zephyr recipe, in less memory"),
        "gradient_accumulation_steps": Setting(8, "ours: see micro_batch_size"),
    }


def small_sft() -> Settings:
    """What a base of 0.1B parameters has other than ``current_sft``."""
    return {"learning_rate": Setting(1e-3, "ours: the smaller the base, the higher the rate")}


def small_preference() -> Settings:
    """What a base of 0.1B parameters has other than ``current_preference``."""
    return {
        "lora_r": Setting(32, "ours: the recipe's 128 would be a quarter of this base's width"),
        "lora_alpha": Setting(32, "ours: as the rank, as in the recipe"),
    }


def device_settings(device: str) -> Settings:
    """Precision, kernels and checkpoints for ``cpu`` or ``cuda``; none of it is in the papers."""
    resuming = {
        "auto_resume_from_checkpoints": Setting(True, "ours: the same command continues an interrupted training")
    }
    if device == "cpu":
        kernels = "ours: Axolotl's Triton kernels need a GPU"
        return {
            "bf16": Setting(False, "ours: full precision on a CPU"),
            "fp16": Setting(False, "ours: full precision on a CPU"),
            "tf32": Setting(False, "ours: GPUs only"),
            "lora_mlp_kernel": Setting(False, kernels),
            "lora_qkv_kernel": Setting(False, kernels),
            "lora_o_kernel": Setting(False, kernels),
            "dataset_num_proc": Setting(1, "ours: starting workers costs more than it saves on small data"),
            "dataloader_num_workers": Setting(0, "ours: see dataset_num_proc"),
            "save_strategy": Setting("no", "ours: short runs start over"),
            **resuming,
        }
    return {
        "bf16": Setting("auto", "ours: bfloat16 where the GPU has it, else float16 as in DTM table 10"),
        "tf32": Setting(True, "ours: faster where there is float32 left"),
        "gradient_checkpointing": Setting(True, "ours: trades a third more time for most of the activations' memory"),
        "save_steps": Setting(0.05, "ours: 20 checkpoints, so that an interrupted training loses a twentieth at most"),
        "save_total_limit": Setting(1, "ours: the last checkpoint is enough to continue"),
        **resuming,
    }


def unless_given(keys: dict[str, Any], given: Collection[str], device: str) -> dict[str, Any]:
    """``keys`` without the device's own word on when checkpoints are saved, where another is given.

    Args:
        keys: Axolotl keys, the device's among them.
        given: the keys that are laid over them.
        device: ``cpu`` or ``cuda``.
    """
    if not any(key in given for key in WHEN_SAVED):
        return keys
    own = device_settings(device)
    return {key: value for key, value in keys.items() if not (key in WHEN_SAVED and _is(own.get(key), value))}


def _is(setting: Setting | None, value: Any) -> bool:
    return setting is not None and setting.value == value


def values(settings: Settings) -> dict[str, Any]:
    """The plain Axolotl keys of ``settings``."""
    return {key: setting.value for key, setting in settings.items()}


def origin(key: str, value: Any, *, settings: str | None, kind: str, device: str) -> str:
    """Where the value of an Axolotl key comes from, or nothing when the user chose another.

    Args:
        key: the key.
        value: its value.
        settings: the paper that the recipe's settings were taken from: ``dtm``, ``paft`` or None.
        kind: the training: ``sft``, ``preference``, or the name of a preference method.
        device: ``cpu`` or ``cuda``.
    """
    known = [*_known(settings, kind), device_settings(device)]
    found = (one[key] for one in known if key in one and one[key].value == value)
    return next((setting.origin for setting in found), "")


def _known(settings: str | None, kind: str) -> list[Settings]:
    """The settings that values of a training can be, those of the paper itself first."""
    paddings: list[Settings] = [{"special_tokens": padded_with(token)} for token in PADDINGS]
    if settings == "dtm" and kind == "sft":
        return [dtm_sft(), dtm_sft(5e-5), *paddings]
    if settings == "paft" and kind == "sft":
        return [paft_sft(), chat(None), current_sft(), small_sft(), *paddings]
    if settings == "paft" and kind != "sft":
        return [paft_preference(), *_methods(kind), chat(None), current_preference(), small_preference(), *paddings]
    return []


def _methods(kind: str) -> list[Settings]:
    """What a preference method has other than the recipe's DPO; of all methods, where only ``preference`` is known."""
    from untax.recipes.preference import METHODS

    methods = [METHODS[kind]] if kind in METHODS else METHODS.values()
    return [{"rl": Setting(method.rl, METHOD_ORIGINS.get(method.name, "")), **method.defaults} for method in methods]


METHOD_ORIGINS = {"dpo": "PAFT 3.1", "orpo": "PAFT appendix A"}
"""Where PAFT uses a preference method."""
PADDINGS = ("</s>", "<|end_of_text|>", "<|endoftext|>")
"""End-of-sequence tokens with which bases without a padding token are padded: Llama 2 and Mistral, Llama 3, SmolLM2."""
