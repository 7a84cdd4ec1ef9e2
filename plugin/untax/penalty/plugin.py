"""DeltaPenaltyPlugin: SFT with an L1 penalty on its delta (PAFT, section 2.3)."""

from __future__ import annotations

from typing import Any

from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger

from untax.penalty.attach import Attached, attach
from untax.penalty.settings import check_training, read_lambdas
from untax.plugins import named
from untax.training.plugin import UntaxPlugin, plain_errors

LOG = get_logger("axolotl.untax.penalty")


class DeltaPenaltyPlugin(UntaxPlugin):
    """Key ``delta_l1``: lambda of ``lambda * sum over layers of ||s*B@A||_1``, whose subgradient joins the loss's."""

    def __init__(self) -> None:
        super().__init__()
        self.attached: Attached | None = None

    def get_input_args(self) -> str:
        """The keys this plugin adds to Axolotl's configuration."""
        return "untax.penalty.args.DeltaPenaltyArgs"

    def check(self, cfg: dict[str, Any]) -> None:
        """Refuse wrong keys, and trainings whose delta is not s*B@A."""
        if read_lambdas(cfg, where=self.config_path(cfg)):
            check_training(cfg, where=self.config_path(cfg))

    @plain_errors
    def post_trainer_create(self, cfg: DictDefault, trainer: Any) -> None:
        """Attach the penalties that the configuration asks for."""
        super().post_trainer_create(cfg, trainer)
        where = self.config_path(cfg)
        penalties = {
            key: (named("delta_penalties", key, where=where), weight)
            for key, weight in read_lambdas(cfg, where=where).items()
        }
        if penalties:
            self.attached = attach(trainer, penalties)
            LOG.info(f"untax: {self.attached.weights} on {len(self.attached.factors)} layers")

    @plain_errors
    def post_train(self, cfg: DictDefault, model: Any) -> None:
        """Put what was really added into the record. Axolotl calls this twice; the first time counts."""
        super().post_train(cfg, model)
        if self.attached is None:
            return
        attached, self.attached = self.attached, None
        norms = attached.norms()
        self.record().sections["penalty"] = {
            **{key.removeprefix("delta_"): weight for key, weight in attached.weights.items()},
            "steps_penalised": attached.steps,
            "steps_before": attached.steps_before,
            "modules": norms.layers,
            "l1_norm": norms.l1,
            "sparsity": norms.sparsity,
        }
