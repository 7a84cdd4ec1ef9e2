"""How far a training is, in a file for whoever watches it, and how many tokens it was trained on, in the manifest."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

VARIABLE = "UNTAX_PROGRESS"
"""The environment variable that names the file."""
WRITE_SECONDS = 1.0
RATE_SECONDS = 5.0
MASKS = (("attention_mask",), ("chosen_attention_mask", "rejected_attention_mask"))
"""What says which tokens of a batch are none: of rows and pairs in one, or of ORPO's pairs, each with its prompt.

Those pairs of KTO that only estimate the KL divergence, ``KL_attention_mask``, are not trained on.
"""
_ATTRIBUTE = "_untax_progress"


class TrainingProgress:
    """Counts a trainer's tokens on its device, and fetches the number only to write it.

    Attributes:
        tokens: real ones, without padding, that all ranks trained on since the training's beginning, also before it was
            resumed: up to the last checkpoint or the end; None where they cannot be counted.
    """

    def __init__(self, trainer: Any, path: Path | None):
        self.tokens: int | None = 0
        self._trainer, self._path = trainer, path
        self.not_finite = 0
        self._lost: torch.Tensor | None = None  # This rank's losses that were no number, not in ``not_finite`` yet.
        self._fresh: torch.Tensor | None = None  # This rank's tokens that are not in ``tokens`` yet.
        self._loss: float | None = None
        self._rate: float | None = None
        self._measured: tuple[float, int | None]
        self._begin()

    def begin(self) -> None:
        """The training begins, from its start or from a checkpoint that has been loaded; it may begin again."""
        state = self._trainer.state
        resumed = None if self._is_counted_by_trainer() else state.num_input_tokens_seen or None
        self.tokens = resumed if state.global_step else 0
        if _shares_batches(self._trainer):
            self.tokens = None
        self._fresh = self._loss = self._rate = None
        self._begin()
        self.write()

    def count(self, inputs: Any) -> None:
        """A batch that is about to be trained on. Nothing waits for the device."""
        if self.tokens is None:
            return
        count = real_tokens(inputs)
        if count is None:
            self.tokens = None
        else:
            self._fresh = count if self._fresh is None else self._fresh + count

    def trained(self, loss: Any) -> None:
        """The loss of a batch. The trainer's own log leaves out one that is no number. Nothing waits for the device."""
        if hasattr(loss, "isfinite"):
            lost = (~loss.detach().isfinite()).sum()
            self._lost = lost if self._lost is None else self._lost + lost

    def settle(self) -> None:
        """Sum over the ranks, all of which must call this."""
        import torch

        trainer = self._trainer
        fresh = 0 if self._fresh is None else int(self._fresh.item())
        lost = 0 if self._lost is None else int(self._lost.item())
        sums = torch.tensor([fresh, self.tokens is None, lost], dtype=torch.int64, device=trainer.args.device)
        if trainer.args.world_size > 1:
            sums = trainer.accelerator.reduce(sums, reduction="sum")
        total, uncounted, lost = sums.tolist()
        self.not_finite, self._lost = self.not_finite + lost, None
        self.tokens = None if uncounted or self.tokens is None else self.tokens + total
        self._fresh = None

    def save(self) -> None:
        """Leave the count in the state that goes into a checkpoint; all ranks must call this."""
        self.settle()
        if self.tokens is not None and not self._is_counted_by_trainer():
            self._trainer.state.num_input_tokens_seen = self.tokens

    def end(self) -> None:
        """The training ends, and its rate is that of all of it; all ranks must call this."""
        self.settle()
        now = time.monotonic()
        if self.tokens is not None and self._tokens_at_begin is not None:
            self._rate, self._measured = (self.tokens - self._tokens_at_begin) / (now - self._begun), (now, self.tokens)
        self.write()

    def logged(self, logs: Mapping[str, Any]) -> None:
        """What the trainer logs."""
        if "loss" in logs:
            with contextlib.suppress(TypeError, ValueError):
                loss = float(logs["loss"])
                self._loss = loss if math.isfinite(loss) else None
        self.write_if_due()

    def write_if_due(self) -> None:
        """Write, but not too often."""
        if self._path is not None and time.monotonic() - self._written >= WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the file, if there is one, on the main rank. A training must not fail for it."""
        if self._path is None or not self._trainer.is_world_process_zero():
            return
        self._written = time.monotonic()
        part = self._path.with_name(f".{self._path.name}.part")
        with contextlib.suppress(OSError, ValueError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Not to the disk at once: after a power cut nobody asks how far it was.
            part.write_text(json.dumps(self._content()), encoding="utf-8")
            part.replace(self._path)

    def _begin(self) -> None:
        self._started, self._begun = time.time(), time.monotonic()
        self._written = -math.inf
        self._first_step = self._trainer.state.global_step
        self._tokens_at_begin = self.tokens
        self._measured = (self._begun, self.tokens)

    def _content(self) -> dict[str, Any]:
        """The file's content.

        ``tokens`` and ``tokens_per_second`` are of all ranks; between checkpoints the other ranks are taken to have had
        as many as this one, for asking them would hold up all. ``loss`` is null before the first one and for NaN.
        """
        state, now = self._trainer.state, time.monotonic()
        tokens = self._tokens_by_now()
        since, before = self._measured
        if tokens is not None and before is not None and now - since >= RATE_SECONDS:
            self._rate, self._measured = max(0, tokens - before) / (now - since), (now, tokens)
        return {
            "step": state.global_step,
            "steps": state.max_steps,
            "first_step": self._first_step,
            "epoch": state.epoch,
            "loss": self._loss,
            "tokens": tokens,
            "tokens_per_second": self._rate,
            "seconds": now - self._begun,
            "started": self._started,
            "time": time.time(),
        }

    def _tokens_by_now(self) -> int | None:
        if self.tokens is None or self._fresh is None:
            return self.tokens
        return self.tokens + int(self._fresh.item()) * int(self._trainer.args.world_size)

    def _is_counted_by_trainer(self) -> bool:
        """Whether the user has transformers count, with padding, in the place where this count would be kept."""
        return getattr(self._trainer.args, "include_num_input_tokens_seen", "no") not in ("no", False, None)


def follow(trainer: Any) -> None:
    """Count a trainer's tokens and say how far it is, once, however often this is called for it."""
    if getattr(trainer, _ATTRIBUTE, None) is not None:
        return
    path = os.environ.get(VARIABLE)
    progress = TrainingProgress(trainer, Path(path) if path else None)
    _wrap(trainer, progress)
    _call_back(trainer, progress)
    setattr(trainer, _ATTRIBUTE, progress)


def tokens_trained(trainer: Any) -> int | None:
    """How many tokens a trainer that has ended was trained on; None where that could not be counted."""
    progress = getattr(trainer, _ATTRIBUTE, None)
    return None if progress is None else progress.tokens


def losses_not_finite(trainer: Any) -> int:
    """How many batches of a trainer that has ended gave a loss of NaN or infinity, since it last began."""
    progress = getattr(trainer, _ATTRIBUTE, None)
    return 0 if progress is None else progress.not_finite


def real_tokens(inputs: Any) -> torch.Tensor | None:
    """How many tokens of a batch are no padding, as a scalar on its device; None if it does not say.

    In packed rows a mask holds the numbers of the rows, from 1 on.
    """
    if not isinstance(inputs, Mapping):
        return None
    for names in MASKS:
        masks = [inputs[name] for name in names if name in inputs]
        if len(masks) == len(names) and all(getattr(mask, "ndim", None) == 2 for mask in masks):
            counts = [(mask > 0).sum() for mask in masks]
            return sum(counts[1:], start=counts[0])
    return None


def _shares_batches(trainer: Any) -> bool:
    """Whether ranks have a batch in common (tensor or context parallelism): the sum over ranks would be too large."""
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    return parallel is not None and parallel.non_data_parallel_size > 1


def _wrap(trainer: Any, progress: TrainingProgress) -> None:
    training_step, save_model = trainer.training_step, trainer.save_model

    def counted_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        # Before the step: Axolotl takes the mask out of packed batches.
        progress.count(inputs)
        loss = training_step(model, inputs, *args, **kwargs)
        progress.trained(loss)
        return loss

    def save_with_count(output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """All ranks come here; the state is written after the weights."""
        if output_dir and Path(output_dir).name.startswith("checkpoint-"):
            progress.save()
        save_model(output_dir, *args, **kwargs)

    trainer.training_step = counted_step
    trainer.save_model = save_with_count


def _call_back(trainer: Any, progress: TrainingProgress) -> None:
    from transformers import TrainerCallback

    class ProgressFileCallback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """The checkpoint has been loaded."""
            progress.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress.write_if_due()

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
        ) -> None:
            progress.logged(logs or {})

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            progress.end()

    trainer.add_callback(ProgressFileCallback())
