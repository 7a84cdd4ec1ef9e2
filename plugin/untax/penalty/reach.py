"""Trainers whose gradients are out of reach: what a YAML could not tell beforehand."""

from __future__ import annotations

from typing import Any

from untax.errors import UntaxError


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


def refuse_fused(trainer: Any) -> None:
    """Refuse optimizers that step inside the backward pass.

    Raises:
        UntaxError: naming the optimizer.
    """
    optimizer = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    if "lomo" in optimizer or "layerwise" in optimizer:
        raise UntaxError(
            f"The optimizer {optimizer} steps inside the backward pass, before the penalty could be added.",
            where="key optimizer",
            fix="Use another optimizer, adamw_torch for example, or leave the delta_* keys out.",
        )
