"""What all of untax's Axolotl plugins share: checked keys, seeded LoRA initialisation, a manifest at the end."""

from __future__ import annotations

import gc
import math
import os
import sys
import weakref
from collections.abc import Sized
from pathlib import Path
from typing import Any, ClassVar

from axolotl.integrations.base import BasePlugin, PluginManager
from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger

from untax.data.corpus import check_entries
from untax.errors import UntaxError
from untax.manifest import MANIFEST_NAME
from untax.training.keys import check_plugins, needed_plugins
from untax.training.plain import plain_errors
from untax.training.prepared import separate_prepared_data
from untax.training.progress import follow, losses_not_finite, tokens_trained
from untax.training.record import TrainingRecord, effective_seed
from untax.training.started import release

LOG = get_logger("axolotl.untax.training")


class UntaxPlugin(BasePlugin):
    """Base class: one record per training, whichever of untax's plugins are listed and in whichever order."""

    _record: ClassVar[TrainingRecord] = TrainingRecord()

    @staticmethod
    def config_path(cfg: Any) -> str:
        """The YAML that is being run, for messages."""
        return str(cfg.get("axolotl_config_path") or "the Axolotl configuration")

    @staticmethod
    def record() -> TrainingRecord:
        """The record of the present training; a process runs one at a time."""
        return UntaxPlugin._record

    @plain_errors
    def register(self, cfg: dict[str, Any]) -> None:
        """Check the keys while none has been dropped or converted yet."""
        where = self.config_path(cfg)
        check_plugins(cfg, where=where)
        self.check(cfg)
        if not cfg.get("pretraining_dataset"):
            check_entries(cfg.get("datasets"))
        if cfg.get("test_datasets"):
            check_entries(cfg["test_datasets"], key="test_datasets")
        release()
        UntaxPlugin._record = TrainingRecord.begin(cfg, digests=_is_main_process())

    def check(self, cfg: dict[str, Any]) -> None:
        """Raise UntaxError if this plugin's keys are wrong."""

    @plain_errors
    def load_datasets(self, cfg: DictDefault, preprocess: bool = False) -> None:
        """Let no cache of an earlier content of the datasets be read; dispersal does so after its own rewriting."""
        self.check_loaded(cfg)
        if "untax.DispersePlugin" not in needed_plugins(cfg):
            self.separate_prepared_data(cfg)

    def check_loaded(self, cfg: DictDefault) -> None:
        """Refuse to train without one of untax's listed plugins: Axolotl 0.19 goes on when one cannot be imported.

        Raises:
            UntaxError: naming it.
        """
        loaded = PluginManager.get_instance().plugins
        missing = [name for name in cfg.plugins or [] if name.startswith("untax.") and name not in loaded]
        if missing:
            raise UntaxError(
                f"Axolotl could not load {', '.join(missing)}; the reason is in its log above.",
                where=f"{self.config_path(cfg)}: plugins",
                fix="Mend that (`untax doctor` with the path of this YAML says more), then train again.",
            )

    def separate_prepared_data(self, cfg: DictDefault) -> None:
        """Make ``dataset_prepared_path`` the datasets' own, once, whichever plugins are listed."""
        if not self.record().prepared:
            separate_prepared_data(cfg)
            self.record().prepared = True

    @plain_errors
    def pre_model_load(self, cfg: DictDefault) -> None:
        """Claim the folder; a manifest from an earlier training must not vouch for the coming one.

        Axolotl calls this wherever it loads a model, and once more for a reference model.
        """
        if _is_main_process() and self.record().trains:
            self.record().claim(cfg)
            (Path(cfg.output_dir) / MANIFEST_NAME).unlink(missing_ok=True)

    def pre_lora_load(self, cfg: DictDefault, model: Any) -> None:
        """Seed the LoRA initialisation, which Axolotl leaves unseeded (SFT)."""
        _seed(cfg)

    def post_model_load(self, cfg: DictDefault, model: Any) -> None:
        """Seed once more: with DPO, KTO and ORPO the trainer makes the adapter, after this."""
        if cfg.rl:
            _seed(cfg)

    def post_trainer_create(self, cfg: DictDefault, trainer: Any) -> None:
        """Remember the trainer until its state has the numbers, and have it say how far it is."""
        self.record().sections["training"] = {"trainer": weakref.ref(trainer)}
        follow(trainer)
        if cfg.rl:
            # Axolotl's DPO trainer collects garbage after every micro-batch, most of its time on a small model.
            # What is alive by now stays alive until the end and need not be looked at again.
            gc.collect()
            gc.freeze()

    @plain_errors
    def post_train(self, cfg: DictDefault, model: Any) -> None:
        """Replace the trainer by what it did. Axolotl calls this twice; the second time there is nothing to do."""
        section = self.record().sections.get("training", {})
        trainer = section.pop("trainer", lambda: None)()
        if trainer is not None:
            section.update(_summary(trainer, cfg))

    @plain_errors
    def post_train_unload(self, cfg: DictDefault) -> None:
        """Write the manifest, last of all. Axolotl 0.21 calls this after a failed training too: then there is none."""
        if _is_main_process() and sys.exc_info()[0] is None:
            self.record().write(cfg)


class ManifestPlugin(UntaxPlugin):
    """For trainings without another untax plugin: seeds the LoRA initialisation and writes the manifest."""


def _seed(cfg: DictDefault) -> None:
    from transformers import set_seed

    set_seed(effective_seed(cfg))


def _summary(trainer: Any, cfg: DictDefault) -> dict[str, Any]:
    """The training in numbers. ``rows`` counts what the trainer was given: packed rows once, a stream's not at all;
    ``rows_held_out`` what ``val_set_size`` took away from them.
    """
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    held_out = trainer.eval_dataset if cfg.val_set_size and not cfg.test_datasets else None
    return {
        "kind": str(cfg.rl.value if hasattr(cfg.rl, "value") else cfg.rl or "sft"),
        "rows": len(trainer.train_dataset) if isinstance(trainer.train_dataset, Sized) else None,
        "rows_held_out": len(held_out) if isinstance(held_out, Sized) else 0,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "tokens": tokens_trained(trainer),
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
        "losses_not_finite": max(losses_not_finite(trainer), sum(not math.isfinite(loss) for loss in losses)),
        "train_loss": next(
            (entry["train_loss"] for entry in reversed(trainer.state.log_history) if "train_loss" in entry), None
        ),
    }


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0
