"""Adding penalties' gradients to a trainer: after the last backward of an optimizer step, before clipping.

Wrapping ``training_step`` is the one place that is right for any gradient accumulation (a penalty is added once, on
the accumulated gradient) and any number of DDP ranks (after the gradients were averaged). The logged loss stays the
trainer's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from untax.adapters.live import Factors, trainable_factors
from untax.adapters.norms import DeltaNorms, delta_norms
from untax.errors import UntaxError

MARK = "_untax_penalised"

Penalty = Callable[..., None]


@dataclass
class Attached:
    """Penalties at work.

    Attributes:
        factors: the layers they cover.
        weights: {key: lambda}.
        steps: optimizer steps they were added to.
        steps_before: optimizer steps that were taken before this process resumed the training; 0 from the start.
    """

    factors: list[Factors]
    weights: dict[str, float]
    steps: int = 0
    steps_before: int = 0

    def norms(self) -> DeltaNorms:
        """Norm and sparsity of the present delta."""
        return delta_norms(factors.delta() for factors in self.factors)


def attach(trainer: Any, penalties: Mapping[str, tuple[Penalty, float]]) -> Attached:
    """Make ``trainer`` add penalties to every optimizer step and log ``l1_norm`` and ``sparsity``.

    Args:
        trainer: a transformers Trainer whose model carries a LoRA adapter.
        penalties: {key: (penalty, lambda)}.

    Raises:
        UntaxError: the trainer spreads its gradients over ranks or steps inside the backward pass, its model trains
            more than LoRA factors, or it is penalised already.
    """
    _refuse_sharding(trainer)
    _refuse_fused(trainer)
    if getattr(trainer, MARK, False):
        raise UntaxError("This trainer is penalised already.", where="key plugins", fix="List DeltaPenaltyPlugin once.")
    weights = {key: weight for key, (_, weight) in penalties.items()}
    attached = Attached(trainable_factors(trainer.model), weights)
    _wrap_training_step(trainer, penalties, attached)
    _wrap_log(trainer, attached)
    setattr(trainer, MARK, True)
    return attached


def _wrap_training_step(trainer: Any, penalties: Mapping[str, tuple[Penalty, float]], attached: Attached) -> None:
    training_step = trainer.training_step

    def penalised_step(*args: Any, **kwargs: Any) -> Any:
        loss = training_step(*args, **kwargs)
        if trainer.accelerator.sync_gradients:
            if attached.steps == 0:
                attached.steps_before = trainer.state.global_step
            scale = _loss_scale(trainer)
            for factors in attached.factors:
                for penalty, weight in penalties.values():
                    penalty(factors, weight=weight * scale)
            attached.steps += 1
        return loss

    trainer.training_step = penalised_step


def _wrap_log(trainer: Any, attached: Attached) -> None:
    log = trainer.log

    def log_with_norms(logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
        if "loss" in logs:
            norms = attached.norms()
            logs["l1_norm"], logs["sparsity"] = norms.l1, norms.sparsity
        return log(logs, *args, **kwargs)

    trainer.log = log_with_norms


def _loss_scale(trainer: Any) -> float:
    """What fp16 training multiplies its gradients by until they are unscaled for clipping; otherwise 1."""
    scaler = getattr(trainer.accelerator, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else 1.0


def _refuse_sharding(trainer: Any) -> None:
    kind = getattr(trainer.accelerator.distributed_type, "value", trainer.accelerator.distributed_type)
    if "DEEPSPEED" in str(kind) or "FSDP" in str(kind):
        raise UntaxError(
            f"The penalty cannot be added under {kind}: its factors or gradients are spread over the ranks.",
            where="keys deepspeed, fsdp_config",
            fix="Train the adapter with plain DDP (LoRA factors are small), or leave delta_l1 out.",
        )


def _refuse_fused(trainer: Any) -> None:
    optimizer = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    if "lomo" in optimizer or "layerwise" in optimizer:
        raise UntaxError(
            f"The optimizer {optimizer} steps inside the backward pass, before the penalty could be added.",
            where="key optimizer",
            fix="Use another optimizer, adamw_torch for example, or leave delta_l1 out.",
        )
