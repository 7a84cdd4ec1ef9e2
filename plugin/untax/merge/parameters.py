"""The parameters of a merge method: which one mergekit would miss only after hours of copying, and which it ignores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from untax.errors import UntaxError
from untax.merge.methods.linear import weight_sum
from untax.merge.settings import unknown_parameters

if TYPE_CHECKING:
    from mergekit.config import MergeConfiguration


def check_parameters(config: MergeConfiguration, *, where: object) -> list[str]:
    """Look for every required parameter of the method in a configuration with ``models:``.

    Returns:
        A sentence for each parameter that is given but that the method does not have: mergekit ignores it.

    Raises:
        UntaxError: a required parameter is missing, or weights that are to be normalised sum to 0.
    """
    from mergekit.merge_methods.registry import get

    spec = get(config.merge_method).spec
    everywhere = set(config.parameters or {})
    given = {model.model: set(model.parameters or {}) for model in config.models or []}
    for parameter in spec.parameters:
        if parameter.required and parameter.name not in everywhere:
            _refuse_missing(parameter, given, config.base_model, where)
    _refuse_zero_sum(config, spec, where)
    known = [parameter.name for parameter in spec.parameters]
    return unknown_parameters(spec.name, everywhere.union(*given.values()), known, where=where)


def _refuse_zero_sum(config: MergeConfiguration, spec: Any, where: object) -> None:
    """mergekit divides by the sum all the same. Only weights that are plain numbers are looked at."""
    own = {parameter.name: parameter for parameter in spec.parameters}
    shared = config.parameters or {}
    if not {"weight", "normalize"} <= own.keys() or shared.get("normalize", own["normalize"].default) is not True:
        return
    counted = [one for one in config.models or [] if own["weight"].scope == "input" or one.model != config.base_model]
    weights = [{**shared, **(one.parameters or {})}.get("weight") for one in counted]
    numbers = [weight for weight in weights if isinstance(weight, int | float)]
    if numbers and len(numbers) == len(weights):
        weight_sum(numbers, where=where)


def _refuse_missing(parameter: Any, given: dict[Any, set[str]], base: Any, where: object) -> None:
    if parameter.scope == "shared":
        lacking = [] if not given else ["the merge"]
    else:
        lacking = [str(model) for model, names in given.items() if parameter.name not in names and model != base]
        # mergekit adds base_model to the inputs; `linear` then wants a weight for it too.
        if given and base is not None and parameter.scope == "input" and parameter.name not in given.get(base, set()):
            lacking.append(f"base_model {base}")
    if lacking:
        raise UntaxError(
            f"The method needs the parameter '{parameter.name}' for {', '.join(lacking)}.",
            where=where,
            fix=f"Give it under `parameters:`. If base_model is no part of the merge, list it with {parameter.name} 0"
            " or leave base_model out.",
        )
