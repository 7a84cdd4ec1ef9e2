"""The ``disperse_*`` keys as Axolotl's own configuration class takes them up."""

from __future__ import annotations

from pydantic import BaseModel, Field


class DisperseArgs(BaseModel):
    """Mixed into Axolotl's configuration, so no ``extra="forbid"`` here: it would spread to all of Axolotl's keys.

    Values are checked in ``untax.disperse.settings``, before Axolotl's validation and with plainer messages.
    """

    disperse_clusters: int | None = Field(default=None, description="K, the number of clusters")
    disperse_cluster: int | None = Field(default=None, description="which cluster to train on, 0 to K-1")
    disperse_strategy: str | None = Field(default=None, description="how rows are dispersed: random")
    disperse_seed: int | None = Field(default=None, description="seed of the dispersal, 42 by default")
    disperse_first_turn: bool | None = Field(default=None, description="train on first turns as instruction/output")
    disperse_assignment: str | None = Field(default=None, description="path of the assignment; made if missing")
