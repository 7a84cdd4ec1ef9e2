"""DeltaPenaltyPlugin: SFT with an L1 penalty on its delta (PAFT, section 2.3)."""

from __future__ import annotations

from typing import Any

from axolotl.utils.dict import DictDefault
from axolotl.utils.logging import get_logger

from untax.errors import UntaxError
from untax.penalty.attach import Attached, attach
from untax.penalty.settings import read_lambdas
from untax.plugins import named
from untax.training.plugin import UntaxPlugin, plain_errors

LOG = get_logger("axolotl.untax.penalty")


class DeltaPenaltyPlugin(UntaxPlugin):
    """Key ``delta_l1``: lambda of ``lambda * sum over layers of ||s*B@A||_1``, added to the training loss's gradient."""

    key_prefix = "delta_"

    def __init__(self) -> None:
        super().__init__()
        self.attached: dict[str, Attached] = {}

    def get_input_args(self) -> str:
        """The keys this plugin adds to Axolotl's configuration."""
        return "untax.penalty.args.DeltaPenaltyArgs"

    def check(self, cfg: dict[str, Any]) -> None:
        """Refuse wrong keys, and adapters whose delta is not s*B@A."""
        lambdas = read_lambdas(cfg, where=self.config_path(cfg))
        if lambdas and cfg.get("peft_use_dora"):
            raise UntaxError("delta_l1 needs a delta of the form s*B@A, and DoRA's is not.", where=f"{self.config_path(cfg)}: peft_use_dora", fix="Set peft_use_dora: false, or leave delta_l1 out.")
        if lambdas and cfg.get("adapter") not in ("lora", "qlora"):
            raise UntaxError(f"delta_l1 penalises LoRA's delta, and the adapter is {cfg.get('adapter')!r}.", where=f"{self.config_path(cfg)}: adapter", fix="Set adapter: lora or qlora, or leave delta_l1 out.")

    @plain_errors
    def post_trainer_create(self, cfg: DictDefault, trainer: Any) -> None:
        """Attach the penalties that the configuration asks for."""
        super().post_trainer_create(cfg, trainer)
        for key, weight in read_lambdas(cfg, where=self.config_path(cfg)).items():
            penalty = named("delta_penalties", key, where=self.config_path(cfg))
            self.attached[key] = attach(trainer, penalty, weight=weight)
            LOG.info(f"untax: {key} {weight:g} on {len(self.attached[key].factors)} layers")

    @plain_errors
    def post_train(self, cfg: DictDefault, model: Any) -> None:
        """Put what was really added into the record."""
        super().post_train(cfg, model)
        for key, attached in self.attached.items():
            norms = attached.norms()
            self.record(cfg).sections["penalty"] = {
                key.removeprefix("delta_"): attached.weight,
                "steps_penalised": attached.steps,
                "modules": norms.layers,
                "l1_norm": norms.l1,
                "sparsity": norms.sparsity,
            }
        self.attached = {}
