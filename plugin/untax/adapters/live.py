"""The LoRA factors of a PEFT model in training: each adapted layer's delta as s * B @ A."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from untax.errors import UntaxError

if TYPE_CHECKING:
    import torch

BASE_CHANGING_INITS = ("pissa", "olora", "loftq", "corda", "lora_ga")


@dataclass(frozen=True)
class Factors:
    """The two trainable factors of one layer.

    Attributes:
        name: the layer's name in the model.
        a: shape (r, in).
        b: shape (out, r).
        scale: s = alpha / r, or alpha / sqrt(r) with rsLoRA.
    """

    name: str
    a: torch.Tensor
    b: torch.Tensor
    scale: float

    def delta(self) -> torch.Tensor:
        """s * B @ A in fp32 without a graph, shape (out, in)."""
        return (self.b.detach().float() @ self.a.detach().float()).mul_(self.scale)


def trainable_factors(model: Any) -> list[Factors]:
    """The factors of every layer with a trainable, active LoRA adapter.

    Raises:
        UntaxError: the model has none; an adapter is of a kind whose delta is not s * B @ A (DoRA and other variants,
            expert parameters, convolutions); parameters outside LoRA are trained as well; or the adapter's
            initialisation moved a part of the base into the factors.
    """
    found = [factors for name, module in model.named_modules() for factors in _of_module(name, module)]
    if not found:
        raise UntaxError(
            "The model has no trainable LoRA layer, so there is no delta s*B@A to penalise.",
            where="key delta_l1",
            fix="Set `adapter: lora` (or qlora) with lora_target_modules or lora_target_linear.",
        )
    _refuse_other_parameters(model, found)
    _refuse_changed_base(model)
    return found


def _of_module(name: str, module: Any) -> Iterator[Factors]:
    from peft.tuners.lora.layer import LoraLayer

    if not isinstance(module, LoraLayer):
        return
    pairs = ((module.lora_A, module.lora_B, True), (module.lora_embedding_A, module.lora_embedding_B, False))
    for adapter in module.active_adapters:
        for down, up, is_module in pairs:
            if adapter not in down:
                continue
            a, b = (down[adapter].weight, up[adapter].weight) if is_module else (down[adapter], up[adapter])
            if a.requires_grad or b.requires_grad:
                _refuse_variant(name, module, adapter, a)
                yield Factors(name, a, b, float(module.scaling[adapter]))


def _refuse_variant(name: str, module: Any, adapter: str, a: torch.Tensor) -> None:
    variant = type(module.lora_variant[adapter]).__name__ if adapter in getattr(module, "lora_variant", {}) else None
    if variant:
        raise UntaxError(
            f"The adapter of this layer is a {variant}: its delta is not s*B@A.",
            where=f"layer {name}",
            fix="Train plain LoRA (peft_use_dora: false), or leave delta_l1 out.",
        )
    if a.ndim != 2 or type(module).__name__ == "ParamWrapper":
        raise UntaxError(
            f"delta_l1 does not know the delta of a {type(module).__name__} adapter.",
            where=f"layer {name}",
            fix="Adapt linear layers only (lora_target_modules), or leave delta_l1 out.",
        )


def _refuse_other_parameters(model: Any, found: list[Factors]) -> None:
    known = {id(tensor) for factors in found for tensor in (factors.a, factors.b)}
    other = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in known
    ]
    if other:
        listed = ", ".join(other[:3]) + (f" and {len(other) - 3} more" if len(other) > 3 else "")
        raise UntaxError(
            f"Parameters outside the LoRA factors are trained too, and delta_l1 would not cover them: {listed}.",
            where="keys lora_modules_to_save, unfrozen_parameters, lora_bias",
            fix="Leave those keys out, or leave delta_l1 out.",
        )


def _refuse_changed_base(model: Any) -> None:
    for name, config in getattr(model, "peft_config", {}).items():
        init = getattr(config, "init_lora_weights", True)
        if isinstance(init, str) and init.startswith(BASE_CHANGING_INITS):
            raise UntaxError(
                f"The initialisation {init} moves a part of the base into the factors of adapter '{name}': "
                "s*B@A is then not the delta from the base.",
                where="key peft_init_lora_weights",
                fix="Leave that key out, or leave delta_l1 out.",
            )
