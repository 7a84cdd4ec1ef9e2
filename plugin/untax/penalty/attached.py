"""Penalties at work on one trainer."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax.adapters.delta import LiveDelta, LowRankDelta, ParameterDelta
from untax.adapters.live import Trained, trained_tensors
from untax.adapters.norms import DeltaNorms, delta_norms
from untax.errors import UntaxError
from untax.penalty.note import Note, read_note, write_note
from untax.penalty.prune import Pruner
from untax.penalty.schedule import factor
from untax.penalty.settings import PenaltySettings, ends_with
from untax.plugins import known_keywords

if TYPE_CHECKING:
    from untax.adapters.live import References
    from untax.adapters.statistics import Diagonal

Penalty = Callable[..., None]


class Attached:
    """What is added to the gradients of one training, and what was.

    Attributes:
        settings: what was asked for.
        deltas: what the penalties are on.
        pruner: what makes exact zeros, or None.
        steps: optimizer steps they were added to.
        steps_before: those before this process resumed the training; 0 from the start.
        start: norms before the first step of this process.
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
        self._trained = 0
        more = {"fisher": fisher, "target": settings.target}
        # Bound once, so that nobody looks at a signature for every layer.
        self._penalties = [
            (functools.partial(penalties[key], **known_keywords(penalties[key], 1, more)), weight)
            for key, weight in settings.lambdas.items()
        ]
        self.pruner = Pruner(settings.sparsity) if settings.sparsity else None
        self.deltas = self._find()
        if self.pruner is not None and not self.low_rank:
            raise UntaxError(
                "delta_sparsity prunes LoRA factors, and none of the chosen layers has any.",
                where="keys delta_sparsity, delta_modules",
                fix="Name adapted layers in delta_modules, or leave that key out.",
            )
        if fisher is not None:
            self._check(fisher)

    def begin(self) -> None:
        """The training begins, from its start or from a checkpoint that has been loaded; it may begin again."""
        # Sharding has replaced the parameters since they were first looked at; their copies are not needed any more.
        self.deltas = []
        self.deltas = self._find()
        self._trained = self._count_trained()
        self.steps, self.steps_before = 0, self.trainer.state.global_step
        self.start = self.norms()

    def resume(self, checkpoint: Path) -> None:
        """Go on as at a checkpoint.

        Raises:
            UntaxError: the steps before it were not penalised as these will be.
        """
        note = read_note(checkpoint)
        if note is None:
            raise UntaxError(
                "The checkpoint does not say how it was penalised: it was trained without, or is not whole.",
                where=checkpoint,
                fix="Remove it to go on from the one before, or train from the start.",
            )
        if (note.identity, note.steps) != (self.settings.identity, self.steps_before):
            raise UntaxError(
                f"{note.steps} of the checkpoint's {self.steps_before} steps were penalised with {note.identity}, "
                f"and what is asked for is {self.settings.identity}.",
                where=checkpoint,
                fix="Resume with the penalty that it was trained with, or train from the start into another folder.",
            )
        if self.pruner is not None:
            self.pruner.restore(note.tensors, self.low_rank)

    def add_gradients(self) -> None:
        """What comes after the last backward of an optimizer step.

        Raises:
            UntaxError: other parameters are trained than when the training began.
        """
        if self.start is None:
            self.begin()
        self._refuse_change()
        scale = _loss_scale(self.trainer) * factor(self.trainer, self.settings.schedule)
        for delta in self._penalised():
            for penalty, weight in self._penalties:
                penalty(delta, weight=weight * scale)
        if self.pruner is not None:
            self.pruner.mask_gradients(self.low_rank)
        self.steps += 1

    def after_step(self) -> None:
        """What comes after the optimizer's step."""
        if self.pruner is not None:
            state = self.trainer.state
            self.pruner.prune(self.low_rank, step=state.global_step, steps=state.max_steps)

    def save(self, checkpoint: Path) -> None:
        """Leave in a checkpoint what ``resume`` needs."""
        tensors = self.pruner.masks(self.low_rank) if self.pruner is not None else {}
        write_note(checkpoint, Note(self.settings.identity, self.steps_before + self.steps, tensors))

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
        found = trained_tensors(self.trainer.model)
        chosen = [trained for trained in found if self.settings.covers(trained.name)]
        _refuse_idle_names(self.settings.modules, [trained.name for trained in found])
        if self.settings.target == "factors":
            _refuse_whole(chosen)
        return [trained.delta(self._references) for trained in chosen]

    def _penalised(self) -> list[LiveDelta]:
        if self.settings.target == "product":
            return self.deltas
        return [ParameterDelta(delta.name, tensor) for delta in self.low_rank for tensor in (delta.a, delta.b)]

    def _check(self, fisher: Diagonal) -> None:
        for delta in self.deltas:
            _check_fisher(fisher, delta)
        if int(os.environ.get("RANK", "0")) == 0:
            fisher.validate(delta.name for delta in self.deltas)

    def _count_trained(self) -> int:
        return sum(parameter.requires_grad for parameter in self.trainer.model.parameters())

    def _refuse_change(self) -> None:
        if self._count_trained() != self._trained:
            raise UntaxError(
                "Other parameters are trained now than when the training began, and would not be penalised.",
                where=f"optimizer step {self.trainer.state.global_step + 1}",
                fix="Leave out what freezes parts of the model as it trains (LISA, for example), or the delta_* keys.",
            )


def _loss_scale(trainer: Any) -> float:
    """What fp16 training multiplies its gradients by until they are unscaled for clipping; otherwise 1."""
    scaler = getattr(trainer.accelerator, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else 1.0


def _check_fisher(fisher: Diagonal, delta: LiveDelta) -> None:
    if delta.transposed:
        raise UntaxError(
            f"The delta of {delta.name} lies the other way round than its Fisher information.",
            where="keys delta_ewc, lora_target_modules",
            fix="Leave this layer out of lora_target_modules or of delta_modules.",
        )
    shape = tuple(delta.parameter.shape) if isinstance(delta, ParameterDelta) else delta.shape
    fisher.check(delta.name, shape)


def _refuse_idle_names(modules: tuple[str, ...] | str | None, found: list[str]) -> None:
    """A name that takes no layer is a typing error, never a wish."""
    layers = {name.rpartition(".")[0] for name in found}
    known = ", ".join(sorted({layer.rpartition(".")[2] for layer in layers}))
    if isinstance(modules, str) and not any(PenaltySettings(modules=modules).covers(name) for name in found):
        raise UntaxError(
            f"delta_modules, {modules!r}, matches the whole name of no trained layer.",
            where="key delta_modules",
            fix=f"For ends of names write a list, [{modules}]. The trained layers' names end in: {known}.",
        )
    idle = [name for name in modules or () if not any(ends_with(layer, name) for layer in layers)]
    if isinstance(modules, tuple) and idle:
        raise UntaxError(
            f"delta_modules names no trained layer with {', '.join(map(repr, idle))}.",
            where="key delta_modules",
            fix=f"The trained layers' names end in: {known}.",
        )


def _refuse_whole(chosen: list[Trained]) -> None:
    others = [trained.name for trained in chosen if trained.factors is None]
    if others:
        raise UntaxError(
            f"With delta_target: factors nothing would penalise {', '.join(others[:3])}, trained without factors.",
            where="keys delta_target, lora_modules_to_save",
            fix="Leave delta_target out, or name the adapted layers in delta_modules.",
        )
