"""The parameters of a merge for one tensor, as mergekit resolves them: filters by name, gradients over the layers."""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from untax.errors import UntaxError, near_names
from untax.merge.method import REQUIRED, Method, Parameter, Values

Given = Mapping[str, Any]
"""What stands under one ``parameters:`` of the YAML."""

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
# normalize_weights (0.69), which other methods have, is no slip of normalize; lamda (0.91) is one of lambda.
_SLIP = 0.75
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True)
class Settings:
    """The ``parameters:`` of a mergekit YAML with ``models:``.

    Attributes:
        method: whose parameters they are.
        models: those of each model, in order.
        names: what each model is called in messages.
        shared: those of the whole merge; they hold for a model that has none of its own.
        layers: how many layers the base has, for gradients; None if it does not say.
        where: the file, for messages.
    """

    method: Method
    models: tuple[Given, ...]
    names: tuple[str, ...]
    shared: Given
    layers: int | None
    where: object

    def values(self, tensor: str) -> Values:
        """Every parameter for one tensor: a value, or a tuple with one for each model.

        Raises:
            UntaxError: a parameter is missing or of another kind; key and model are named.
        """
        return {parameter.name: self._value(parameter, tensor) for parameter in self.method.parameters}

    def unknown(self) -> list[str]:
        """See ``unknown_parameters``."""
        known = [parameter.name for parameter in self.method.parameters]
        return unknown_parameters(self.method.name, {*self.shared}.union(*self.models), known, where=self.where)

    def _value(self, parameter: Parameter, tensor: str) -> Any:
        if not parameter.per_model:
            return self._resolved(parameter, [self.shared], tensor, "the merge")
        return tuple(
            self._resolved(parameter, [given, self.shared], tensor, name)
            for given, name in zip(self.models, self.names, strict=True)
        )

    def _resolved(self, parameter: Parameter, scopes: Sequence[Given], tensor: str, owner: str) -> Any:
        for given in scopes:
            if parameter.name in given:
                found = self._evaluated(parameter, given[parameter.name], tensor, owner)
                if found is not None:
                    return found
        if parameter.default is not REQUIRED:
            return parameter.default
        only_filters = any(parameter.name in given for given in scopes)
        raise UntaxError(
            f"The method needs the parameter '{parameter.name}' for {owner}"
            + (f": none of its filters is in {tensor}." if only_filters else "."),
            where=self.where,
            fix=("Add a last {value: ...} without a filter." if only_filters else "Give it under `parameters:`.")
            + (f" Or leave base_model out, or list it with {parameter.name} 0." if parameter.counts_base else ""),
        )

    def _evaluated(self, parameter: Parameter, setting: Any, tensor: str, owner: str) -> Any:
        try:
            found = evaluate(setting, tensor, self._position(tensor), parameter.kind)
        except (ValueError, TypeError) as error:
            raise UntaxError(
                f"{parameter.name} of {owner} is {setting!r}, no {parameter.kind.__name__}, filter or gradient.",
                where=f"{self.where}, key parameters",
                fix="Give one value, a list over the layers, or a list of {filter, value}.",
            ) from error
        if isinstance(found, float) and not math.isfinite(found):
            raise UntaxError(
                f"{parameter.name} of {owner} is {found}.", where=f"{self.where}, key parameters", fix="Give a number."
            )
        return found

    def _position(self, tensor: str) -> float:
        """0 at the first layer, 1 at the last; 0 outside the layers."""
        found = _LAYER.search(tensor)
        if found is None or not self.layers:
            return 0.0
        return int(found[1]) / (self.layers - 1) if self.layers > 1 else 1.0


def unknown_parameters(method: str, given: Iterable[str], known: Sequence[str], *, where: object) -> list[str]:
    """A sentence for each key that a method does not have: mergekit ignores it.

    Raises:
        UntaxError: a key is so near to a known one that it is a slip of the pen.
    """
    unknown = sorted({*given} - {*known})
    for key in unknown:
        refuse_slip(key, known, f"{method} has no parameter '{key}'.", where=f"{where}, key parameters")
    return [f"{method} has no parameter '{key}' and ignores it. {near_names(key, [*known])}" for key in unknown]


def refuse_slip(key: str, known: Sequence[str], problem: str, *, where: object) -> None:
    """Refuse a key that nobody reads and that is nearly one that is read.

    Raises:
        UntaxError: it is.
    """
    close = difflib.get_close_matches(key, known, n=1, cutoff=_SLIP)
    if close:
        raise UntaxError(problem, where=where, fix=f"Did you mean '{close[0]}'?")


def evaluate(setting: Any, tensor: str, position: float, kind: type) -> Any:
    """The value of a setting for one tensor, or None when no filter matches.

    Args:
        setting: a value, a gradient (a list of values), or {filter, value} pairs of which the first match counts.
        tensor: the tensor's name; a filter is a part of it.
        position: between 0 (first layer) and 1 (last).
        kind: what values must be.

    Raises:
        ValueError: a value is of another kind.
        TypeError: the setting is none of the three.
    """
    if isinstance(setting, bool | int | float | str):
        return _checker(kind).validate_python(setting)
    conditions = [setting] if isinstance(setting, Mapping) else setting
    if not isinstance(conditions, list):
        raise TypeError("no setting")
    if not conditions:
        return None
    if all(isinstance(value, bool | int | float | str) for value in conditions):
        return _interpolated([_checker(kind).validate_python(value) for value in conditions], position, kind)
    for condition in conditions:
        if not isinstance(condition, Mapping) or "value" not in condition:
            raise TypeError("no condition")
        pattern = condition.get("filter")
        if pattern in (None, "*") or pattern in tensor:
            return evaluate(condition["value"], tensor, position, kind)
    return None


def _interpolated(values: list[Any], position: float, kind: type) -> Any:
    scaled = position * (len(values) - 1)
    before = int(scaled)
    if kind in (bool, str):
        return values[before]
    after, share = min(len(values) - 1, before + 1), scaled - before
    return _checker(kind).validate_python((1 - share) * values[before] + share * values[after])


@functools.cache
def _checker(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def has_gradients(given: Iterable[Given]) -> bool:
    """Whether any value is a list to interpolate over the layers."""
    return any(_has_gradient(value) for one in given for value in one.values())


def _has_gradient(setting: Any) -> bool:
    if isinstance(setting, Mapping):
        return _has_gradient(setting.get("value"))
    if not isinstance(setting, list) or not setting:
        return False
    return all(not isinstance(value, Mapping) for value in setting) or any(map(_has_gradient, setting))


def layer_count(config: Given) -> int | None:
    """How many layers a model has, by its config.json."""
    return next((config[key] for key in _LAYER_COUNTS if isinstance(config.get(key), int)), None)
