"""The ``delta_*`` keys as Axolotl's own configuration class takes them up: one for every registered penalty, and more.

Values are checked in ``untax.penalty.settings``, before Axolotl's validation and with plainer messages.
"""

from __future__ import annotations

from pydantic import BaseModel, Field, create_model

from untax.plugins import registry


class PenaltyOptions(BaseModel):
    """Mixed into Axolotl's configuration, so no ``extra="forbid"`` here: it would spread to all of Axolotl's keys."""

    delta_target: str | None = Field(default=None, description="product: s*B@A (default); factors: A and B apart")
    delta_modules: list[str] | str | None = Field(
        default=None, description="the layers that are penalised, by the ends of their names or one regular expression"
    )
    delta_schedule: str | None = Field(default=None, description="constant (default) or linear_warmup")
    delta_ewc_fisher: str | None = Field(default=None, description="the base's diagonal Fisher information, a file")
    delta_sparsity: float | None = Field(default=None, description="prune LoRA's delta to this share of exact zeros")
    delta_base: str | None = Field(default=None, description="full fine-tuning: keep the base in memory, or reread it")
    delta_log_steps: int | None = Field(default=None, description="steps between norm and sparsity in the log, 10")


def _model() -> type[BaseModel]:
    fields = {
        key: (float | None, Field(default=None, description=f"lambda of the penalty {key}"))
        for key in registry("delta_penalties")
    }
    return create_model(  # type: ignore[call-overload]
        "DeltaPenaltyArgs", __module__=__name__, __base__=PenaltyOptions, **fields
    )


DeltaPenaltyArgs = _model()
