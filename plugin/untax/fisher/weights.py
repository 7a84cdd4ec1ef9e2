"""Which weights of a model have a Fisher, and what its checkpoint calls them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from untax.errors import UntaxError

if TYPE_CHECKING:
    import torch

MODULES = ("linear", "all")


@dataclass(frozen=True)
class Weight:
    """One weight.

    Attributes:
        name: in the checkpoint.
        parameter: its tensor.
        layers: the linear layers that apply it, and nothing else does; empty when its gradient is left to autograd.
        transposed: whether it is stored as (in, out), as GPT-2 does.
    """

    name: str
    parameter: torch.nn.Parameter
    layers: tuple[Any, ...]
    transposed: bool = False


def weights_of(network: Any, modules: str, shapes: Mapping[str, tuple[int, ...]], *, where: object) -> list[Weight]:
    """The weights, sorted by name; tied ones once.

    Args:
        network: a causal language model.
        modules: ``linear`` (weights of the linear layers that LoRA's ``all-linear`` adapts, which leaves out the output
            layer) or ``all`` (every parameter).
        shapes: the shape of every tensor of the checkpoint, by name.
        where: the model, for messages.

    Raises:
        UntaxError: there is none; or the checkpoint has a weight under no name, or in another shape.
    """
    output = network.get_output_embeddings()
    found = []
    for uses in _parameters(network).values():
        layers, transposed = _layers(uses)
        if modules == "all" or (layers and output not in layers):
            found.append(Weight(_stored_name(network, uses, shapes, where), uses[0].parameter, layers, transposed))
    if not found:
        raise UntaxError("The model has no linear layer.", where=where, fix="Use --modules all.")
    return sorted(found, key=lambda weight: weight.name)


@dataclass(frozen=True)
class _Use:
    """A parameter as an attribute of a module."""

    name: str
    attribute: str
    module: Any
    parameter: Any


def _parameters(network: Any) -> dict[int, list[_Use]]:
    """Every parameter with all places where it is one."""
    found: dict[int, list[_Use]] = {}
    for prefix, module in network.named_modules(remove_duplicate=False):
        for attribute, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{attribute}" if prefix else attribute
            found.setdefault(id(parameter), []).append(_Use(name, attribute, module, parameter))
    return found


def _layers(uses: list[_Use]) -> tuple[tuple[Any, ...], bool]:
    """The linear layers that are all that uses a parameter, if so; and whether they store it as (in, out)."""
    layers = tuple({id(use.module): use.module for use in uses}.values())
    transposed = {_is_transposed(layer) for layer in layers}
    alike = all(use.attribute == "weight" and _is_linear(use.module) for use in uses) and len(transposed) == 1
    return (layers, transposed == {True}) if alike else ((), False)


def _is_linear(module: Any) -> bool:
    import torch

    return isinstance(module, torch.nn.Linear) or _is_transposed(module)


def _is_transposed(module: Any) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _stored_name(network: Any, uses: list[_Use], shapes: Mapping[str, tuple[int, ...]], where: object) -> str:
    for name in _possible_names(network, uses):
        if shapes.get(name) == tuple(uses[0].parameter.shape):
            return name
    raise UntaxError(
        f"The checkpoint has no tensor {uses[0].name} of shape {list(uses[0].parameter.shape)}: transformers names or "
        "stores it otherwise.",
        where=where,
        fix="Use --modules linear, if this was --modules all; or save the model again with save_pretrained.",
    )


def _possible_names(network: Any, uses: list[_Use]) -> Iterator[str]:
    """Some checkpoints are of the model without its head, whose names lack the first part."""
    prefix = f"{network.base_model_prefix}."
    yield from (use.name for use in uses)
    yield from (use.name.removeprefix(prefix) for use in uses)
