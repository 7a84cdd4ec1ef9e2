"""pydantic's errors about a recipe as sentences: the key, what is wrong with it, what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, get_origin

from pydantic import BaseModel, ValidationError

from untax.errors import near_names
from untax.recipes.arms import KINDS


def problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Every problem in an error about ``model``, a sentence each, in the order of the keys."""
    return [problem for entry in error.errors() for problem in _problems(entry, model)]


def _problems(entry: Any, model: type[BaseModel]) -> list[str]:
    """What one of pydantic's errors says, a sentence for each problem in it."""
    place = _place(entry["loc"])
    key = ".".join(map(str, place)) or "the recipe"
    given = entry["input"]
    if entry["type"] == "extra_forbidden":
        return [f"unknown key {key}. {near_names(str(place[-1]), _keys_at(entry['loc'][:-1], model))}"]
    if entry["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", entry["ctx"]["expected"])
        return [f"{key}: unknown name {given!r}. {near_names(str(given), known)}"]
    if entry["type"] == "union_tag_invalid":
        return [_unknown_kind(place, str(given["arm"]))]
    if entry["type"] in ("union_tag_not_found", "model_type", "model_attributes_type", "dict_type"):
        return [f"{key}: keys and values belong here, not {given!r}"]
    if entry["type"] == "value_error":
        lines = entry["msg"].removeprefix("Value error, ").split("\n")
        return [line if line.startswith(f"{key}.") else f"{key}: {line}" for line in lines]
    message = entry["msg"][0].lower() + entry["msg"][1:]
    return [f"{key}: {message}" + ("" if entry["type"] == "missing" else f", not {given!r}")]


def _unknown_kind(place: tuple[Any, ...], kind: str) -> str:
    guess = near_names(kind, list(KINDS))
    if place[-1] == kind:
        return f"unknown key arms.{kind}. {guess} (An arm with a name of its own says its kind: `arm: dtm`.)"
    return f"arms.{place[-1]}.arm: unknown name '{kind}'. {guess}"


def _place(location: tuple[Any, ...]) -> tuple[Any, ...]:
    """An error's place as it stands in the file: pydantic puts the kind of an arm behind its name."""
    return (*location[:2], *location[3:]) if location[:1] == ("arms",) else location


def _keys_at(location: tuple[Any, ...], model: type[BaseModel]) -> list[str]:
    """The keys that belong where an unknown one was found."""
    found: Any = model
    parts = iter(location)
    for part in parts:
        if part == "arms":
            next(parts)
            found = KINDS[next(parts)]
        elif isinstance(part, str):
            annotation = found.model_fields[part].annotation
            found = _model_of(annotation)
            if get_origin(annotation) is dict:
                next(parts)
    return list(found.model_fields)


def _model_of(annotation: Any) -> Any:
    """The model that a field holds: itself, or one of a union, a list's or a mapping's values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner: Iterable[Any] = getattr(annotation, "__args__", ())
    return next((model for option in inner if (model := _model_of(option)) is not None), None)
