"""The ``delta_*`` keys as Axolotl's own configuration class takes them up: one for every registered penalty."""

from __future__ import annotations

from pydantic import BaseModel, Field, create_model

from untax.plugins import registry


def _model() -> type[BaseModel]:
    """Mixed into Axolotl's configuration, so no ``extra="forbid"`` here: it would spread to all of Axolotl's keys."""
    fields = {
        key: (float | None, Field(default=None, description=f"lambda of the penalty {key}"))
        for key in registry("delta_penalties")
    }
    return create_model("DeltaPenaltyArgs", __module__=__name__, **fields)  # type: ignore[call-overload]


DeltaPenaltyArgs = _model()
