"""``untax.yaml``: the recipe of a run folder, the only file there that is edited by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from untax.errors import UntaxError, near_names

SPEC_NAME = "untax.yaml"
DTM_MERGES = ("average", "task_arithmetic", "ties", "dare_linear")
PAFT_MERGES = ("slerp", "task_arithmetic", "ties", "dare_ties", "linear")

Scale = Annotated[float, Field(gt=0, le=2)]
Scales = Annotated[list[Scale], Field(min_length=1)]
DatasetEntries = Annotated[list[dict[str, Any]], Field(min_length=1)]


class Strict(BaseModel):
    """No unknown keys: a typo must not become a default."""

    model_config = ConfigDict(extra="forbid")


class Vanilla(Strict):
    """SFT on all instruction data."""

    scales: Scales = [1.0]


class Dtm(Strict):
    """Disperse-Then-Merge: K sub-models, one per cluster, averaged (section 4)."""

    clusters: int = Field(default=4, ge=2)
    strategy: str = "random"
    seed: int = 42
    merge: list[Literal["average", "task_arithmetic", "ties", "dare_linear"]] = Field(default=["average"], min_length=1)
    scales: Scales = [1.0]


class Paft(Strict):
    """SFT with an L1 penalty and preference training in parallel from one base, merged (section 2)."""

    delta_l1: float = Field(default=1e-4, ge=0)
    merge: list[Literal["slerp", "task_arithmetic", "ties", "dare_ties", "linear"]] = Field(
        default=["ties"], min_length=1
    )
    scales: Scales = [1.0]

    @field_validator("delta_l1")
    @classmethod
    def _finite(cls, value: float) -> float:
        if not math.isfinite(value):
            raise ValueError("lambda is a finite number >= 0")
        return value

    @model_validator(mode="after")
    def _scales_have_meaning(self) -> Paft:
        _refuse_scaled_slerp(self.merge, self.scales)
        return self


class Parallel(Strict):
    """PAFT without the penalty: dense SFT and preference training in parallel, merged."""

    merge: list[Literal["slerp", "task_arithmetic", "ties", "dare_ties", "linear"]] = Field(
        default=["ties"], min_length=1
    )
    scales: Scales = [1.0]

    @model_validator(mode="after")
    def _scales_have_meaning(self) -> Parallel:
        _refuse_scaled_slerp(self.merge, self.scales)
        return self


def _refuse_scaled_slerp(merge: list[Any], scales: list[float]) -> None:
    if "slerp" in merge and any(scale != 1 for scale in scales):
        raise ValueError("slerp interpolates whole models and has no scale: leave scales out or leave slerp out")


class Sequential(Strict):
    """SFT, then preference training that starts from its result."""


class Arms(Strict):
    """The arms of a run folder; an arm that is not named is not trained."""

    vanilla: Vanilla | None = None
    dtm: Dtm | None = None
    paft: Paft | None = None
    sequential: Sequential | None = None
    parallel: Parallel | None = None

    @model_validator(mode="before")
    @classmethod
    def _named_without_settings(cls, value: Any) -> Any:
        """``dtm:`` with nothing after it means the arm with its defaults."""
        if isinstance(value, dict):
            return {name: {} if settings is None else settings for name, settings in value.items()}
        return value

    @model_validator(mode="after")
    def _one_at_least(self) -> Arms:
        if not self.names:
            raise ValueError(f"no arm is named; known: {', '.join(type(self).model_fields)}")
        return self

    @property
    def names(self) -> list[str]:
        """The arms that are asked for, in the order of the tables."""
        return [name for name in type(self).model_fields if getattr(self, name) is not None]


class Training(Strict):
    """Axolotl keys of the two kinds of training; anything Axolotl knows."""

    sft: dict[str, Any] = {}
    preference: dict[str, Any] = {}


class RunSpec(Strict):
    """The whole recipe. Paths are relative to the run folder."""

    base: str
    device: Literal["cpu", "cuda"] = "cuda"
    seed: int = 42
    sft: DatasetEntries | None = None
    first_turn: bool = False
    preference: DatasetEntries | None = None
    arms: Arms
    training: Training = Training()
    settings: Literal["dtm", "paft"] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    suite: str | None = None

    @model_validator(mode="after")
    def _data_for_arms(self) -> RunSpec:
        needs_sft = self.arms.names
        needs_preference = [name for name in self.arms.names if name in ("paft", "sequential", "parallel")]
        if needs_sft and not self.sft:
            raise ValueError(f"sft is missing: {', '.join(needs_sft)} train on instruction data")
        if needs_preference and not self.preference:
            raise ValueError(f"preference is missing: {', '.join(needs_preference)} train on preference pairs")
        return self

    @field_validator("base")
    @classmethod
    def _readable_by_mergekit(cls, base: str) -> str:
        if "+" in base or "@" in base:
            raise ValueError(
                f"mergekit reads '+' and '@' as separators, so it cannot read {base}: rename or link the folder"
            )
        return base

    @field_validator("sft", "preference")
    @classmethod
    def _entries_have_paths(cls, entries: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for index, entry in enumerate(entries or []):
            if not entry.get("path"):
                raise ValueError(f"entry {index} has no path")
        return entries


def read_spec(path: Path) -> RunSpec:
    """Read and check ``untax.yaml``.

    Raises:
        UntaxError: the file is missing or no YAML, or every key that is wrong, at once.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UntaxError(
            "There is no recipe here.", where=path, fix="Make one with `untax recipe dtm` or `untax recipe paft`."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UntaxError(f"The recipe is no YAML: {error}", where=path, fix="Correct the file.") from error
    return check_spec(content, where=path)


def check_spec(content: Any, *, where: object) -> RunSpec:
    """A spec from plain values; all problems in one UntaxError."""
    try:
        return RunSpec.model_validate(content)
    except ValidationError as error:
        problems = [_problem(entry) for entry in error.errors()]
        raise UntaxError(
            "The recipe is wrong:\n  - " + "\n  - ".join(problems), where=where, fix="Correct these keys."
        ) from error


def _problem(entry: Any) -> str:
    key = ".".join(str(part) for part in entry["loc"]) or "the recipe"
    if entry["type"] == "extra_forbidden":
        return f"unknown key {key}. {near_names(str(entry['loc'][-1]), _keys_at(entry['loc'][:-1]))}"
    message = entry["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower() + message[1:]}" + (
        "" if entry["type"] in ("missing", "value_error") else f", not {entry['input']!r}"
    )


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    model: Any = RunSpec
    for part in location:
        annotation = model.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return list(model.model_fields)
