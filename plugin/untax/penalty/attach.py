"""Adding penalties' gradients to a trainer: after the last backward of an optimizer step, before clipping.

Wrapping ``training_step`` is the one place that is right for any gradient accumulation (a penalty is added once, on
the accumulated gradient) and any number of ranks (after the gradients were averaged). The logged loss stays the
trainer's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from untax.adapters.delta import LiveDelta, LowRankDelta, ParameterDelta
from untax.adapters.live import trainable_deltas
from untax.adapters.norms import DeltaNorms, delta_norms
from untax.errors import UntaxError
from untax.penalty.prune import Pruner, prune_after_steps
from untax.penalty.reach import refuse_fused, refuse_sharding
from untax.penalty.reference import KeptBase
from untax.penalty.schedule import factor
from untax.penalty.settings import PenaltySettings
from untax.plugins import call_with_known

if TYPE_CHECKING:
    from untax.adapters.live import References
    from untax.adapters.statistics import Diagonal

MARK = "_untax_penalised"

Penalty = Callable[..., None]


class Attached:
    """Penalties at work on one trainer.

    Attributes:
        settings: what was asked for.
        deltas: what they are on.
        pruner: what makes exact zeros, or None.
        steps: optimizer steps they were added to.
        steps_before: optimizer steps that were taken before this process resumed the training; 0 from the start.
        start: norms before the first of these steps.
    """

    def __init__(
        self,
        trainer: Any,
        settings: PenaltySettings,
        penalties: Mapping[str, Penalty],
        references: References,
        fisher: Diagonal | None,
    ):
        """Find the deltas, and refuse at once what cannot be penalised."""
        self.trainer = trainer
        self.settings = settings
        self.steps = 0
        self.steps_before = 0
        self.start: DeltaNorms | None = None
        self._references = references
        self._logged_at: int | None = None
        self._penalties = [
            (partial(call_with_known, penalties[key], fisher=fisher, target=settings.target), weight)
            for key, weight in settings.lambdas.items()
        ]
        self.pruner = Pruner(settings.sparsity) if settings.sparsity else None
        self.deltas = self._find()
        for delta in self.deltas if fisher is not None else ():
            _check_fisher(fisher, delta)

    def add_gradients(self) -> None:
        """What comes after the last backward of an optimizer step."""
        if self.start is None:
            # Sharding has replaced the parameters since they were first looked at.
            self.deltas = self._find()
            self.steps_before = self.trainer.state.global_step
            self.start = self.norms()
        scale = _loss_scale(self.trainer) * factor(self.trainer, self.settings.schedule)
        for delta in self._penalised():
            for penalty, weight in self._penalties:
                penalty(delta, weight=weight * scale)
        if self.pruner is not None:
            self.pruner.mask_gradients(self.low_rank)
        self.steps += 1

    @property
    def low_rank(self) -> list[LowRankDelta]:
        """The deltas that LoRA factors carry."""
        return [delta for delta in self.deltas if isinstance(delta, LowRankDelta)]

    def norms(self) -> DeltaNorms:
        """Norm and sparsity of the present delta."""
        return delta_norms(self.deltas)

    def norms_to_log(self) -> dict[str, float]:
        """``l1_norm`` and ``sparsity`` if they are due, else nothing."""
        interval, now = self.settings.log_steps, self.trainer.state.global_step
        if not interval or (self._logged_at is not None and now < self._logged_at + interval):
            return {}
        self._logged_at = now
        norms = self.norms()
        return {"l1_norm": norms.l1, "sparsity": norms.sparsity}

    def _find(self) -> list[LiveDelta]:
        found = trainable_deltas(self.trainer.model, self._references)
        if self.settings.target == "factors":
            found = [delta for delta in found if isinstance(delta, LowRankDelta)]
        chosen = [delta for delta in found if self.settings.covers(delta.name)]
        _refuse_idle_names(self.settings.modules, [delta.name for delta in found], [delta.name for delta in chosen])
        return chosen

    def _penalised(self) -> list[LiveDelta]:
        if self.settings.target == "product":
            return self.deltas
        return [ParameterDelta(delta.name, tensor) for delta in self.low_rank for tensor in (delta.a, delta.b)]


def attach(
    trainer: Any,
    settings: PenaltySettings,
    penalties: Mapping[str, Penalty],
    *,
    references: References | None = None,
    fisher: Diagonal | None = None,
) -> Attached:
    """Make ``trainer`` add penalties to every optimizer step, and log ``l1_norm`` and ``sparsity`` now and then.

    Args:
        trainer: a transformers Trainer that has not begun.
        settings: which penalties, how strong, on what.
        penalties: {key: penalty}, with every key of ``settings.lambdas``.
        references: the pretrained values of parameters that are trained themselves; by default they are copied.
        fisher: the base's diagonal Fisher information, for those penalties that take it.

    Raises:
        UntaxError: the trainer's gradients are out of reach, its model has deltas of an unknown kind, ``delta_modules``
            names what is not trained, the Fisher information is another model's, or it is penalised already.
    """
    refuse_sharding(trainer)
    refuse_fused(trainer)
    if getattr(trainer, MARK, False):
        raise UntaxError("This trainer is penalised already.", where="key plugins", fix="List DeltaPenaltyPlugin once.")
    attached = Attached(trainer, settings, penalties, references or KeptBase(), fisher)
    _wrap_training_step(trainer, attached)
    _wrap_log(trainer, attached)
    if attached.pruner is not None:
        prune_after_steps(trainer, attached.pruner, lambda: attached.low_rank)
    setattr(trainer, MARK, True)
    return attached


def _wrap_training_step(trainer: Any, attached: Attached) -> None:
    training_step = trainer.training_step

    def penalised_step(*args: Any, **kwargs: Any) -> Any:
        loss = training_step(*args, **kwargs)
        if trainer.accelerator.sync_gradients:
            attached.add_gradients()
        return loss

    trainer.training_step = penalised_step


def _wrap_log(trainer: Any, attached: Attached) -> None:
    log = trainer.log

    def log_with_norms(logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
        if "loss" in logs:
            logs.update(attached.norms_to_log())
        return log(logs, *args, **kwargs)

    trainer.log = log_with_norms


def _loss_scale(trainer: Any) -> float:
    """What fp16 training multiplies its gradients by until they are unscaled for clipping; otherwise 1."""
    scaler = getattr(trainer.accelerator, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else 1.0


def _check_fisher(fisher: Diagonal | None, delta: LiveDelta) -> None:
    if fisher is None:
        return
    if delta.transposed:
        raise UntaxError(
            f"The delta of {delta.name} lies the other way round than its Fisher information.",
            where="keys delta_ewc, lora_target_modules",
            fix="Leave this layer out of lora_target_modules or of delta_modules.",
        )
    shape = tuple(delta.parameter.shape) if isinstance(delta, ParameterDelta) else delta.shape
    fisher.check(delta.name, shape)


def _refuse_idle_names(modules: tuple[str, ...] | str | None, found: list[str], chosen: list[str]) -> None:
    """A name that takes no layer is a typing error, never a wish."""
    asked = (modules,) if isinstance(modules, str) else modules or ()
    idle = [name for name in asked if not any(PenaltySettings(modules=_alone(name, modules)).covers(f) for f in found)]
    if idle or not chosen:
        known = sorted({name.rpartition(".")[0].rpartition(".")[2] for name in found})
        raise UntaxError(
            f"delta_modules takes no trained layer with {', '.join(map(repr, idle)) or 'nothing'}.",
            where="key delta_modules",
            fix=f"The trained layers' names end in: {', '.join(known)}.",
        )


def _alone(name: str, modules: tuple[str, ...] | str | None) -> tuple[str, ...] | str:
    return name if isinstance(modules, str) else (name,)
