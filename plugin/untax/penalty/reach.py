"""Trainings whose delta or gradients are out of reach: told from the YAML, and what only the trainer tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from untax.adapters.live import BASE_CHANGING_INITS
from untax.errors import UntaxError

_LEAVE = "or leave the delta_* keys out."


def check_training(cfg: Mapping[str, Any], *, where: object) -> None:
    """Refuse trainings whose delta or gradients are out of reach, before anything is loaded.

    Raises:
        UntaxError: naming the key.
    """
    if problem := _out_of_reach(cfg):
        sentence, key, fix = problem
        raise UntaxError(f"The penalty cannot be used in this training: {sentence}.", where=f"{where}: {key}", fix=fix)


def _out_of_reach(cfg: Mapping[str, Any]) -> tuple[str, str, str] | None:
    if cfg.get("adapter") not in (None, "lora", "qlora"):
        fix = f"Use `adapter: lora` or qlora, or none (full fine-tuning), {_LEAVE}"
        return f"the delta of an adapter of kind {cfg['adapter']!r} is not known", "adapter", fix
    if cfg.get("peft_use_dora"):
        sentence = "DoRA's delta is not s*B@A: it divides by the norms of the rows that it changes"
        return sentence, "peft_use_dora", f"Train plain LoRA (peft_use_dora: false), {_LEAVE}"
    if cfg.get("relora") or cfg.get("relora_steps"):
        return "ReLoRA merges the delta into the base as it trains", "relora", f"Train plain LoRA, {_LEAVE}"
    if cfg.get("deepspeed"):
        sentence = deepspeed_reason(_zero_stage(cfg["deepspeed"]))
        return sentence, "deepspeed", f"Use DDP, or FSDP2 (fsdp_version: 2) where the model must be sharded, {_LEAVE}"
    if cfg.get("lisa_step_interval") or cfg.get("lisa_n_layers"):
        sentence = "LISA trains other layers every few steps, and has no pretrained values of them"
        return sentence, "lisa_step_interval", f"Train all layers, {_LEAVE}"
    init = str(cfg.get("peft_init_lora_weights") or "")
    if init.startswith(BASE_CHANGING_INITS):
        sentence = f"the initialisation {init} moves a part of the base into the factors"
        return sentence, "peft_init_lora_weights", f"Leave that key out, {_LEAVE}"
    if cfg.get("delta_sparsity") and (cfg.get("load_best_model_at_end") or cfg.get("early_stopping_patience")):
        sentence = "delta_sparsity reaches its target late, and the best checkpoint may be an early one"
        return sentence, "load_best_model_at_end, early_stopping_patience", "Leave those keys out."
    return _fsdp_problem(cfg)


def _zero_stage(deepspeed: Any) -> int | None:
    """The stage that DeepSpeed's own configuration, a JSON file or its content, asks for, if it can be read."""
    try:
        config = deepspeed if isinstance(deepspeed, Mapping) else json.loads(Path(deepspeed).read_text("utf-8"))
        return int(config["zero_optimization"]["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fsdp_problem(cfg: Mapping[str, Any]) -> tuple[str, str, str] | None:
    if not (cfg.get("fsdp") or cfg.get("fsdp_config")):
        return None
    # Axolotl takes these keys with and without the prefix.
    config = {str(key).removeprefix("fsdp_"): value for key, value in (cfg.get("fsdp_config") or {}).items()}
    if str(cfg.get("fsdp_version") or config.get("version") or 1) != "2":
        return "FSDP1 flattens the parameters of a layer into one", "fsdp_version", f"Set `fsdp_version: 2`, {_LEAVE}"
    if config.get("offload_params"):
        sentence = "parameters that are offloaded to the CPU cannot be gathered by the GPUs"
        return sentence, "fsdp_config: offload_params", f"Set it to false, {_LEAVE}"
    if config.get("cpu_ram_efficient_loading") and not cfg.get("adapter") and cfg.get("delta_base") != "reread":
        sentence = "with cpu_ram_efficient_loading most ranks do not see the pretrained weights, which delta is from"
        return sentence, "fsdp_config: cpu_ram_efficient_loading", f"Set it to false, or delta_base: reread, {_LEAVE}"
    return None


def refuse_sharding(trainer: Any) -> None:
    """Refuse DeepSpeed and FSDP1; FSDP2 and DDP are fine.

    Raises:
        UntaxError: saying what is wrong with it.
    """
    accelerator = trainer.accelerator
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if "DEEPSPEED" in kind:
        stage = getattr(getattr(accelerator.state, "deepspeed_plugin", None), "zero_stage", None)
        raise UntaxError(
            f"The penalty cannot be added here: {deepspeed_reason(stage)}.",
            where="key deepspeed",
            fix="Use DDP, or FSDP2 (fsdp_version: 2) where the model must be sharded, or leave the delta_* keys out.",
        )
    if "FSDP" in kind and getattr(getattr(accelerator.state, "fsdp_plugin", None), "fsdp_version", 1) != 2:
        raise UntaxError(
            "The penalty cannot be added under FSDP1, which flattens the parameters of a layer into one.",
            where="key fsdp_version",
            fix="Set `fsdp_version: 2`, or leave the delta_* keys out.",
        )


def deepspeed_reason(stage: int | None) -> str:
    """Why no gradient can be added under DeepSpeed.

    Args:
        stage: of ZeRO, if it is known.
    """
    if stage == 3:
        return "DeepSpeed ZeRO-3 divides parameters and gradients over the ranks, and steps inside the backward pass"
    name = "DeepSpeed" if stage is None else f"DeepSpeed ZeRO-{stage}"
    return f"{name} steps inside the backward pass, before the penalty's gradient could be added"


def refuse_optimizer(trainer: Any, *, pruned: bool) -> None:
    """Refuse optimizers that step inside the backward pass, and for pruning those that evaluate other weights.

    Args:
        trainer: with the optimizer's name in ``args.optim``.
        pruned: whether rows and columns are pruned.

    Raises:
        UntaxError: naming the optimizer.
    """
    optimizer = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    if "lomo" in optimizer or "layerwise" in optimizer:
        problem = "steps inside the backward pass, before the penalty could be added"
    elif pruned and "schedule_free" in optimizer:
        problem = "averages weights of earlier steps, and would bring back what delta_sparsity pruned"
    else:
        return
    raise UntaxError(
        f"The optimizer {optimizer} {problem}.",
        where="key optimizer",
        fix="Use another optimizer, adamw_torch for example, or leave the delta_* keys out.",
    )
