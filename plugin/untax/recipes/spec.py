"""``untax.yaml``: the recipe of a run folder, the only file there that is edited by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Discriminator, Field, Tag, ValidationError, ValidationInfo, field_validator

from untax.errors import UntaxError, near_names
from untax.files import disk_error
from untax.recipes import unique_keys
from untax.recipes.arms import (
    KINDS,
    L2,
    Dtm,
    DtmPaft,
    Ewc,
    Individual,
    Paft,
    Parallel,
    Replay,
    Sequential,
    Soup,
    Vanilla,
)
from untax.recipes.checks import FREE_PENALTY_KEYS, base_problems, entry_problems, owned_keys, refuse, unknown_name
from untax.recipes.merge_choice import Strict, name_problems
from untax.recipes.preference import METHODS
from untax.recipes.spec_errors import problems

SPEC_NAME = "untax.yaml"
DatasetEntries = Annotated[list[dict[str, Any]], Field(min_length=1)]
AxolotlKeys = dict[str, Any]

NamedArm = Annotated[
    Annotated[Vanilla, Tag("vanilla")]
    | Annotated[Dtm, Tag("dtm")]
    | Annotated[L2, Tag("l2")]
    | Annotated[Ewc, Tag("ewc")]
    | Annotated[Replay, Tag("replay")]
    | Annotated[Soup, Tag("soup")]
    | Annotated[Individual, Tag("individual")]
    | Annotated[Sequential, Tag("sequential")]
    | Annotated[Parallel, Tag("parallel")]
    | Annotated[Paft, Tag("paft")]
    | Annotated[DtmPaft, Tag("dtm-paft")],
    Discriminator(lambda arm: arm.get("arm") if isinstance(arm, dict) else getattr(arm, "arm", None)),
]


class Training(Strict):
    """Axolotl keys of the kinds of training; anything Axolotl knows.

    Attributes:
        sft: every SFT.
        preference: every preference training; ``rl`` names the recipe's method.
        dpo, orpo, kto, simpo: laid over ``preference`` for that method, whose ``rl`` they have anyway.
    """

    sft: AxolotlKeys = Field(default_factory=dict)
    preference: AxolotlKeys = Field(default_factory=dict)
    dpo: AxolotlKeys = Field(default_factory=dict)
    orpo: AxolotlKeys = Field(default_factory=dict)
    kto: AxolotlKeys = Field(default_factory=dict)
    simpo: AxolotlKeys = Field(default_factory=dict)

    @field_validator("*")
    @classmethod
    def _not_the_plans(cls, keys: AxolotlKeys, info: ValidationInfo) -> AxolotlKeys:
        method = METHODS.get(str(info.field_name))
        names_method = info.field_name == "preference" or (method is not None and keys.get("rl") == method.rl)
        refuse(owned_keys(keys, free=(*FREE_PENALTY_KEYS, *(("rl",) if names_method else ()))))
        return keys


class NodeSettings(Strict):
    """What one training has of its own.

    Attributes:
        axolotl: Axolotl keys.
        gpus: how many it takes.
    """

    axolotl: AxolotlKeys = Field(default_factory=dict)
    gpus: int | None = Field(default=None, ge=1)

    @field_validator("axolotl")
    @classmethod
    def _not_the_plans(cls, keys: AxolotlKeys) -> AxolotlKeys:
        refuse(owned_keys(keys))
        return keys


class RunSpec(Strict):
    """The whole recipe. Paths are relative to the run folder.

    Attributes:
        base: the pretrained model.
        device: decides precision and kernels.
        seed: of the trainings.
        sft: instruction data, entries of Axolotl's ``datasets``.
        first_turn: train on the first turn of dialogues only (DTM A.1).
        preference: preference pairs, for every method or by method.
        replay: pretraining text: ``path``, and if needed ``split``, ``name``, ``field``.
        arms: what is trained and merged; an arm that is not named is not.
        training: the Axolotl keys of the kinds of training.
        axolotl: Axolotl keys of every training.
        nodes: what single trainings have of their own.
        launcher: Axolotl's launcher; None is its default, and ``python`` on a CPU.
        launcher_args: what the launcher is given, such as ``--num_processes=8``.
        gpus: how many GPUs each training takes.
        settings: the paper whose origins stand beside the values.
        dtype: of merged models.
        suite: what every model is scored on.
    """

    base: str
    device: Literal["cpu", "cuda"] = "cuda"
    seed: int = 42
    sft: DatasetEntries | None = None
    first_turn: bool = False
    preference: DatasetEntries | dict[str, DatasetEntries] | None = None
    replay: DatasetEntries | None = None
    arms: Annotated[dict[str, NamedArm], Field(min_length=1)]
    training: Training = Field(default=Training(), validate_default=True)
    axolotl: AxolotlKeys = Field(default_factory=dict)
    nodes: dict[str, NodeSettings] = Field(default_factory=dict)
    launcher: Literal["accelerate", "torchrun", "python"] | None = None
    launcher_args: list[str] = Field(default_factory=list)
    gpus: int = Field(default=1, ge=1)
    settings: Literal["dtm", "paft"] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    suite: str | None = None

    @field_validator("arms", mode="before")
    @classmethod
    def _kinds(cls, arms: Any) -> Any:
        """Each arm with its kind: ``dtm:`` with nothing after it means the arm with its defaults."""
        if not isinstance(arms, dict):
            return arms
        if not arms:
            raise ValueError(f"no arm is named; known: {', '.join(KINDS)}")
        refuse([problem for name in arms for problem in name_problems(str(name))])
        return {str(name): _with_kind(str(name), settings) for name, settings in arms.items()}

    @field_validator("base")
    @classmethod
    def _a_model(cls, base: str, info: ValidationInfo) -> str:
        refuse(base_problems(base, _folder(info), look=_look(info)))
        return base

    @field_validator("sft", "replay")
    @classmethod
    def _readable_entries(
        cls, entries: list[dict[str, Any]] | None, info: ValidationInfo
    ) -> list[dict[str, Any]] | None:
        refuse(entry_problems(entries or [], _folder(info), look=_look(info)))
        return entries

    @field_validator("preference", mode="after")
    @classmethod
    def _readable_pairs(cls, pairs: Any, info: ValidationInfo) -> Any:
        by_method = pairs if isinstance(pairs, dict) else {"": pairs or []}
        refuse(
            [
                problem
                for entries in by_method.values()
                for problem in entry_problems(entries, _folder(info), look=_look(info))
            ]
        )
        refuse(
            [
                f"unknown method '{name}'. {near_names(name, list(METHODS))}"
                for name in by_method
                if name not in ("", *METHODS)
            ]
        )
        return pairs

    @field_validator("axolotl")
    @classmethod
    def _not_the_plans(cls, keys: AxolotlKeys) -> AxolotlKeys:
        refuse(owned_keys(keys))
        return keys

    @field_validator("suite")
    @classmethod
    def _registered(cls, suite: str | None) -> str | None:
        refuse([] if suite is None else unknown_name("eval_suites", suite))
        return suite

    @property
    def method(self) -> str:
        """The preference method of arms that name none."""
        return str(self.training.preference.get("rl", "dpo"))


def _with_kind(name: str, settings: Any) -> Any:
    """An arm's settings with its kind, which is its name unless it says another."""
    if settings is None:
        return {"arm": name}
    return {"arm": name, **settings} if isinstance(settings, dict) else settings


def _folder(info: ValidationInfo) -> Path | None:
    """The run folder, where the caller of the check knows it."""
    return (info.context or {}).get("folder")


def _look(info: ValidationInfo) -> bool:
    """Whether local paths must lead somewhere already."""
    return bool((info.context or {}).get("look"))


def read_spec(path: Path, *, look: bool = False) -> RunSpec:
    """Read and check ``untax.yaml``.

    Args:
        path: the file.
        look: whether the local base and data that it names must be there.

    Raises:
        UntaxError: the file is missing or no YAML, or every key that is wrong, at once.
    """
    try:
        content = unique_keys.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UntaxError("There is no recipe here.", where=path, fix="Make one with `untax recipe`.") from error
    except OSError as error:
        raise disk_error(error, path) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UntaxError(f"The recipe is no YAML: {error}", where=path, fix="Correct the file.") from error
    return check_spec(content, where=path, folder=path.parent, look=look)


def check_spec(
    content: Any, *, where: object, folder: Path | None = None, look: bool = False, also: Sequence[str] = ()
) -> RunSpec:
    """A spec from plain values; all problems in one UntaxError.

    Args:
        content: the values.
        where: what to call them in an error.
        folder: the run folder, to look at local files from; without it they are not looked at.
        look: whether local files must be there.
        also: problems that were found before, to be told with the others.
    """
    if content is None:
        raise UntaxError("The recipe is empty.", where=where, fix="Make one with `untax recipe`.")
    spec, found, wrong = _validated(content, {"folder": folder, "look": look})
    if spec is None and isinstance(content, dict):
        # What is right is checked further, so that the user hears of everything at once.
        spec, _, _ = _validated(_without(content, wrong), {"folder": folder})
    if spec is not None:
        from untax.recipes.whole import whole_problems

        found += whole_problems(spec, unknown=frozenset(str(place[0]) for place in wrong))
    found = [*also, *found]
    if found or spec is None:
        raise UntaxError("The recipe is wrong:\n  - " + "\n  - ".join(found), where=where, fix="Correct these keys.")
    return spec


def _validated(content: Any, context: dict[str, Any]) -> tuple[RunSpec | None, list[str], list[tuple[Any, ...]]]:
    """The spec if it is right, else the problems as sentences and their places."""
    try:
        return RunSpec.model_validate(content, context=context), [], []
    except ValidationError as error:
        return None, problems(error, RunSpec), [entry["loc"] for entry in error.errors()]


def _without(content: dict[str, Any], wrong: list[tuple[Any, ...]]) -> dict[str, Any]:
    """The content without the keys that are wrong; an arm is left out only where it is wrong as a whole."""
    whole = {place[0] for place in wrong if place and (place[0] != "arms" or len(place) == 1)}
    left = {"base": "some/base", **{key: value for key, value in content.items() if key not in whole}}
    if isinstance(left.get("arms"), dict):
        places = [place[1:] for place in wrong if place[:1] == ("arms",) and len(place) > 1]
        whole_arms = {name for name, *rest in places if len(rest) < 2}
        keys = {(name, rest[1]) for name, *rest in places if len(rest) > 1}
        left["arms"] = {
            name: {key: value for key, value in (arm or {}).items() if (str(name), key) not in keys}
            for name, arm in left["arms"].items()
            if str(name) not in whole_arms
        }
    return left
