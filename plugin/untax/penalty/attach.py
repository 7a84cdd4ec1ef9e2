"""Adding penalties' gradients to a trainer: after the last backward of an optimizer step, before clipping.

Wrapping ``training_step`` is the one place that is right for any gradient accumulation (a penalty is added once, on
the accumulated gradient) and any number of ranks (after the gradients were averaged). The logged loss stays the
trainer's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax.errors import UntaxError
from untax.penalty.attached import Attached, Penalty
from untax.penalty.reach import refuse_optimizer, refuse_sharding
from untax.penalty.reference import KeptBase
from untax.penalty.settings import PenaltySettings
from untax.training.plain import plain_errors

if TYPE_CHECKING:
    from untax.adapters.live import References
    from untax.adapters.statistics import Diagonal

MARK = "_untax_penalised"


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
    refuse_optimizer(trainer, pruned=settings.sparsity is not None)
    if getattr(trainer, MARK, False):
        raise UntaxError("This trainer is penalised already.", where="key plugins", fix="List DeltaPenaltyPlugin once.")
    attached = Attached(trainer, settings, penalties, references or KeptBase(), fisher)
    _wrap_training_step(trainer, attached)
    _wrap_log(trainer, attached)
    _call_back(trainer, attached)
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


def _call_back(trainer: Any, attached: Attached) -> None:
    """Have ``attached`` called when the training begins, after every optimizer step, and in every checkpoint."""
    from transformers import TrainerCallback

    train, save_model = trainer.train, trainer.save_model
    resumed: list[Any] = []

    def train_and_remember(resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        resumed[:] = [resume_from_checkpoint]
        return train(resume_from_checkpoint, *args, **kwargs)

    def save_with_note(output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """The weights come first in a checkpoint, and its state, which makes it one, last: the note is between."""
        save_model(output_dir, *args, **kwargs)
        if output_dir and Path(output_dir).name.startswith("checkpoint-") and trainer.args.should_save:
            attached.save(Path(output_dir))

    class PenaltyCallback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """The checkpoint has been loaded, and the model prepared."""
            attached.begin()
            if state.global_step:
                attached.resume(_checkpoint(args.output_dir, *resumed))

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """The step has been taken, and is not counted yet."""
            attached.after_step()

    trainer.train = plain_errors(train_and_remember)
    trainer.save_model = save_with_note
    trainer.add_callback(PenaltyCallback())


def _checkpoint(output_dir: str, named: Any) -> Path:
    from transformers.trainer_utils import get_last_checkpoint

    return Path(named if isinstance(named, (str, Path)) else get_last_checkpoint(output_dir) or output_dir)
