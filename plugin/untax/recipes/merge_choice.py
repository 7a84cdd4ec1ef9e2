"""How an arm's adapters are merged: the methods, and a method with settings of its own."""

from __future__ import annotations

import math
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from untax.errors import near_names
from untax.recipes.checks import refuse

MERGES = (
    *("average", "linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp", "nuslerp"),
    *("fisher", "regmean", "ties_global", "dare_exact"),
)
"""How an arm's adapters can be merged. ``average`` is ``linear``, by the name that Disperse-Then-Merge has for it."""
OF_TWO = ("slerp", "nuslerp")
"""Methods that interpolate between two models."""
MEANS = ("average", "linear", "fisher")
"""Methods whose weights are divided by their sum."""
UNWEIGHTED = ("regmean", "ties_global")
"""Methods that know no weights, beside those of two."""
STATISTICS = {"fisher": "fisher", "regmean": "gram"}
"""Methods that weigh each model by a file of its own, and the untax command that makes it."""
DTM_MERGES = ("average", "task_arithmetic", "ties", "dare_linear")
"""DTM table 4; its fifth row, ``fisher``, needs statistics of the training's texts as well."""
PAFT_MERGES = ("slerp", "task_arithmetic", "ties", "dare_ties", "linear")
"""PAFT table 1."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
TAKEN = {"base": "the base model's scores", "prepared": "the trainings' tokenised data"}
"""Names that a model's folder cannot have."""


class Strict(BaseModel):
    """No unknown keys: a typo must not become a default."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Merge(Strict):
    """A merge method with settings of its own; a bare name in the list means its defaults.

    Attributes:
        method: one of ``MERGES``.
        name: what the model is called instead of by its method, so that one method can come twice.
        density: the share of each delta that ties and dare keep.
        weights: one for each adapter.
        t: how far slerp and nuslerp go from the first model to the second.
    """

    method: str
    name: str | None = None
    density: float | None = Field(default=None, gt=0, le=1)
    weights: list[float] | None = None
    t: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"method": value} if isinstance(value, str) else value

    @field_validator("method")
    @classmethod
    def _known(cls, method: str) -> str:
        refuse([] if method in MERGES else [f"unknown name '{method}'. {near_names(method, list(MERGES))}"])
        return method

    @field_validator("name")
    @classmethod
    def _a_folder(cls, name: str | None) -> str | None:
        refuse([] if name is None else name_problems(name))
        return name

    @model_validator(mode="after")
    def _settings_have_a_place(self) -> Merge:
        problems = []
        if self.density is not None and not self.method.startswith(("ties", "dare")):
            problems.append(f"density: {self.method} has none; ties and dare do")
        if self.t is not None and self.method not in OF_TWO:
            problems.append(f"t: {self.method} has none; slerp and nuslerp do")
        if self.weights is not None:
            problems += self._weight_problems(self.weights)
        refuse(problems)
        return self

    def _weight_problems(self, weights: list[float]) -> list[str]:
        if self.method in OF_TWO:
            return [f"weights: {self.method} has t instead"]
        if self.method in UNWEIGHTED:
            return [f"weights: {self.method} has none"]
        if not all(map(math.isfinite, weights)):
            return ["weights: they are finite numbers"]
        if self.method == "fisher" and min(weights, default=0) < 0:
            return ["weights: fisher's are not below 0"]
        if self.method in MEANS and math.isclose(math.fsum(weights), 0, abs_tol=1e-9):
            return [f"weights: {self.method} divides by their sum, which is 0"]
        return []

    @property
    def label(self) -> str:
        """What the merge is called in names of models and of rows."""
        return self.name or self.method


def name_problems(name: str) -> list[str]:
    """A problem unless ``name`` can be the name of a folder and of a YAML."""
    if name in TAKEN:
        return [f"{name!r} is taken: it stands for {TAKEN[name]}"]
    return [] if NAME.fullmatch(name) else [f"{name!r} is no name: letters, digits, '-', '_' and '.' make one"]
