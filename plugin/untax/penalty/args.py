"""The ``delta_*`` keys as Axolotl's own configuration class takes them up."""

from __future__ import annotations

from pydantic import BaseModel, Field


class DeltaPenaltyArgs(BaseModel):
    """Mixed into Axolotl's configuration, so no ``extra="forbid"`` here: it would spread to all of Axolotl's keys."""

    delta_l1: float | None = Field(default=None, description="lambda of the L1 penalty on the delta (PAFT, equation 1)")
