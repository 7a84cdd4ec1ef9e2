"""DeltaPenaltyPlugin: training with a penalty on the delta (PAFT, section 2.3; the baselines L2 and EWC)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger

from untax.adapters.norms import delta_norms
from untax.adapters.statistics import Diagonal
from untax.errors import UntaxError
from untax.penalty.attach import attach
from untax.penalty.attached import Attached
from untax.penalty.reach import check_training
from untax.penalty.reference import KeptBase, StoredBase
from untax.penalty.settings import PenaltySettings, read_settings
from untax.plugins import named
from untax.training.plain import plain_errors
from untax.training.plugin import UntaxPlugin

LOG = get_logger("axolotl.untax.penalty")


class DeltaPenaltyPlugin(UntaxPlugin):
    """Keys ``delta_*``: ``delta_l1`` is lambda of ``lambda * sum over layers of ||s*B@A||_1``, and so on."""

    def __init__(self) -> None:
        super().__init__()
        self.attached: Attached | None = None

    def get_input_args(self) -> str:
        """The keys this plugin adds to Axolotl's configuration."""
        return "untax.penalty.args.DeltaPenaltyArgs"

    def check(self, cfg: dict[str, Any]) -> None:
        """Refuse wrong keys, and trainings whose delta or gradients are out of reach."""
        settings = read_settings(cfg, where=self.config_path(cfg))
        if settings.active:
            check_training(cfg, where=self.config_path(cfg))
        if settings.ewc_fisher:
            Diagonal(Path(settings.ewc_fisher))

    @plain_errors
    def post_trainer_create(self, cfg: DictDefault, trainer: Any) -> None:
        """Attach the penalties that the configuration asks for."""
        super().post_trainer_create(cfg, trainer)
        where = self.config_path(cfg)
        settings = read_settings(cfg, where=where)
        if not settings.active:
            LOG.info("untax: no penalty is asked for")
            return
        # Once more: validation has spelled some of Axolotl's keys otherwise.
        check_training(cfg, where=where)
        penalties = {key: named("delta_penalties", key, where=where) for key in settings.lambdas}
        reread = settings.base == "reread"
        references = StoredBase(str(cfg.base_model), cfg.revision_of_model) if reread else KeptBase()
        fisher = self._fisher(settings)
        self.attached = attach(trainer, settings, penalties, references=references, fisher=fisher)
        asked = {**settings.lambdas, **({"delta_sparsity": settings.sparsity} if settings.sparsity else {})}
        listed = ", ".join(f"{key} {value:g}" for key, value in asked.items())
        LOG.info(f"untax: {listed} on {len(self.attached.deltas)} layers ({settings.target}, {settings.schedule})")

    def _fisher(self, settings: PenaltySettings) -> Diagonal | None:
        if settings.ewc_fisher is None:
            return None
        fisher = Diagonal(Path(settings.ewc_fisher))
        _refuse_other_base(fisher, self.record().inputs.get("base"))
        return fisher

    @plain_errors
    def post_train(self, cfg: DictDefault, model: Any) -> None:
        """Put what was really added into the record. Axolotl calls this twice; the first time counts."""
        super().post_train(cfg, model)
        if self.attached is None:
            return
        attached, self.attached = self.attached, None
        self.record().sections["penalty"] = _section(attached)


def _refuse_other_base(fisher: Diagonal, base: str | None) -> None:
    """A Fisher file that says what it was made of must have been made of this base, without an adapter."""
    made_of = fisher.metadata.get("base")
    if fisher.metadata.get("adapter") or (made_of and base and made_of != base):
        raise UntaxError(
            "The Fisher information is of another model than the base that is trained.",
            where=fisher.path,
            fix="Make it of the base: untax fisher with the path that base_model has.",
        )


def _section(attached: Attached) -> dict[str, Any]:
    start, end = attached.start, attached.norms()
    section = {
        **attached.settings.identity,
        "steps_penalised": attached.steps,
        "steps_before": attached.steps_before,
        "modules": end.layers,
        "l1_norm_start": start.l1 if start else None,
        "l1_norm": end.l1,
        "l2_norm_start": start.l2 if start else None,
        "l2_norm": end.l2,
        "sparsity": end.sparsity,
        "zeros": end.zeros,
    }
    if attached.pruner is not None:
        pruned = delta_norms(attached.low_rank)
        section["pruned"] = {"layers": pruned.layers, "zeros": pruned.zeros}
    return section
