"""The deltas of a model in training: LoRA layers as s * B @ A, all other trained parameters as theta - theta_pre."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from untax.adapters.delta import LiveDelta, LowRankDelta, ParameterDelta
from untax.adapters.sharding import is_sharded, own_rows
from untax.errors import UntaxError

if TYPE_CHECKING:
    import torch

    from untax.adapters.delta import Reference

    References = Callable[[str, torch.Tensor], Reference]

BASE_CHANGING_INITS = ("pissa", "olora", "loftq", "corda", "lora_ga")
# What PEFT, checkpointing and compilation put into the names of a base model's parameters.
_WRAPPINGS = re.compile(r"^base_model\.model\.|\b(_checkpoint_wrapped_module|_orig_mod|base_layer)\.")
_COPIES = re.compile(r"\.modules_to_save\.[^.]+\.")


@dataclass(frozen=True)
class Trained:
    """A tensor of the base that is trained, in whatever way.

    Attributes:
        name: its name in the base's checkpoint.
        factors: its delta, if LoRA factors carry it.
        parameter: the parameter otherwise.
        original: the frozen pretrained one that the model keeps beside it (``modules_to_save``), if it does.
    """

    name: str
    factors: LowRankDelta | None = None
    parameter: torch.Tensor | None = None
    original: torch.Tensor | None = None

    def delta(self, references: References) -> LiveDelta:
        """The delta as it is now.

        Args:
            references: called with the name and the parameter, where the model does not keep the pretrained value; it
                returns what reads rows of that.
        """
        if self.factors is not None:
            return self.factors
        assert self.parameter is not None
        if self.original is None:
            return ParameterDelta(self.name, self.parameter, references(self.name, self.parameter))
        rows, first = own_rows(self.original)
        return ParameterDelta(self.name, self.parameter, lambda own: rows[own.start - first : own.stop - first])


def trained_tensors(model: Any) -> list[Trained]:
    """Every trained tensor: adapted layers in the order of the model's modules, then all others.

    Args:
        model: the model, wrapped for the trainer or not.

    Raises:
        UntaxError: nothing is trained; an adapter is of a kind whose delta is not s * B @ A (DoRA and other variants,
            expert parameters, convolutions); or the adapter's initialisation moved a part of the base into the factors.
    """
    _refuse_changed_base(model)
    factors = [delta for name, module in model.named_modules() for delta in _of_module(name, module)]
    _refuse_shared(factors)
    known = {id(tensor) for delta in factors for tensor in (delta.a, delta.b)}
    others = [
        _of_parameter(model, name, parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in known
    ]
    found = [*(Trained(delta.name, factors=delta) for delta in factors), *others]
    if not found:
        raise UntaxError(
            "The model has no trainable parameter, so there is no delta to penalise.",
            where="the delta_* keys",
            fix="Set `adapter: lora` (or qlora) with lora_target_linear: true, or leave `adapter` out.",
        )
    return found


def base_name(name: str) -> str:
    """The name in the base's checkpoint of a parameter of a (wrapped) model.

    >>> base_name("base_model.model.lm_head.modules_to_save.default.weight")
    'lm_head.weight'
    >>> base_name("_orig_mod.model.norm.weight")
    'model.norm.weight'
    """
    return _COPIES.sub(".", _WRAPPINGS.sub("", re.sub(r"^(_orig_mod\.|module\.)+", "", name)))


def _of_module(name: str, module: Any) -> Iterator[LowRankDelta]:
    from peft.tuners.lora.layer import LoraLayer

    if not isinstance(module, LoraLayer):
        return
    kinds = ((module.lora_A, module.lora_B, False), (module.lora_embedding_A, module.lora_embedding_B, True))
    active = [adapter for adapter in module.active_adapters if adapter in module.scaling]
    if len(active) > 1:
        raise UntaxError(
            f"The layer has several active adapters: {', '.join(active)}; its delta is their sum.",
            where=f"layer {name}",
            fix="Train one adapter at a time.",
        )
    for adapter in active:
        for down, up, is_embedding in kinds:
            if adapter not in down:
                continue
            a, b = (down[adapter], up[adapter]) if is_embedding else (down[adapter].weight, up[adapter].weight)
            if a.requires_grad or b.requires_grad:
                _refuse_variant(name, module, adapter, a)
                transposed = is_embedding or bool(getattr(module, "fan_in_fan_out", False))
                yield LowRankDelta(base_name(f"{name}.weight"), a, b, float(module.scaling[adapter]), transposed)


def _of_parameter(model: Any, name: str, parameter: torch.Tensor) -> Trained:
    """Biases of the factors and trained tokens are refused: a part of the delta that is no tensor of the base."""
    if re.search(r"\.(lora_|trainable_tokens|ia3_)", name):
        raise UntaxError(
            f"The adapter trains {name}, and with it the delta is more than s*B@A.",
            where="keys adapter, peft_*",
            fix="Train plain LoRA, or leave the delta_* keys out.",
        )
    kept = _COPIES.sub(".original_module.", name)
    original = model.get_parameter(kept).detach() if kept != name else None
    if original is not None and not original.is_floating_point():
        original = None
    return Trained(base_name(name), parameter=parameter, original=original)


def _refuse_shared(factors: list[LowRankDelta]) -> None:
    """Layers that are tied and share their factors would be penalised and counted twice."""
    seen: dict[int, str] = {}
    for delta in factors:
        for tensor in (delta.a, delta.b):
            place = 0 if tensor.is_meta or is_sharded(tensor) else tensor.data_ptr()
            if place and place in seen:
                raise UntaxError(
                    f"The layers {seen[place]} and {delta.name} share their LoRA factors.",
                    where="keys lora_target_modules, peft_ensure_weight_tying",
                    fix="Adapt one of them only, or leave the delta_* keys out.",
                )
            seen[place] = delta.name


def _refuse_variant(name: str, module: Any, adapter: str, a: torch.Tensor) -> None:
    variant = type(module.lora_variant[adapter]).__name__ if adapter in getattr(module, "lora_variant", {}) else None
    if variant:
        raise UntaxError(
            f"The adapter of this layer is a {variant}, whose delta is not s*B@A.",
            where=f"layer {name}",
            fix="Train plain LoRA (without peft_use_dora, for example), or leave the delta_* keys out.",
        )
    if a.ndim != 2 or type(module).__name__ == "ParamWrapper":
        raise UntaxError(
            f"The delta of a {type(module).__name__} adapter is not known here.",
            where=f"layer {name}",
            fix="Adapt linear layers only (lora_target_modules), or leave the delta_* keys out.",
        )


def _refuse_changed_base(model: Any) -> None:
    for name, config in getattr(model, "peft_config", {}).items():
        init = getattr(config, "init_lora_weights", True)
        if isinstance(init, str) and init.startswith(BASE_CHANGING_INITS):
            raise UntaxError(
                f"The initialisation {init} moves a part of the base into the factors of adapter '{name}': "
                "s*B@A is then not the delta from the base.",
                where="key peft_init_lora_weights",
                fix="Leave that key out, or leave the delta_* keys out.",
            )
