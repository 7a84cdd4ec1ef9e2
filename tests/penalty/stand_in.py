"""A stand-in trainer: what a penalty sees of a real one, around two small layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from untax.adapters.statistics import Diagonal
from untax.penalty.attach import Attached
from untax.penalty.attach import attach as attach_with
from untax.penalty.hooks import delta_penalties
from untax.penalty.settings import PenaltySettings


class Scaler:
    """As torch.amp.GradScaler answers; accelerate builds none on a CPU."""

    def __init__(self, scale: float, enabled: bool = True) -> None:
        self.scale, self.enabled = scale, enabled

    def get_scale(self) -> float:
        return self.scale

    def is_enabled(self) -> bool:
        return self.enabled


class StandIn:
    """One whose micro-batches are all an optimizer step's last, and which steps nowhere."""

    def __init__(
        self, *, scaler: Scaler | None = None, kind: str = "NO", optim: str = "adamw_torch", stage: int = 2
    ) -> None:
        torch.manual_seed(0)
        layers = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Linear(6, 3))
        self.model = get_peft_model(layers, LoraConfig(r=2, target_modules=["0", "1"], init_lora_weights=False))
        state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage), fsdp_plugin=SimpleNamespace())
        self.accelerator = SimpleNamespace(distributed_type=kind, sync_gradients=True, scaler=scaler, state=state)
        self.args = SimpleNamespace(optim=optim, should_save=True)
        self.state = SimpleNamespace(global_step=0)
        self.logged: list[dict[str, float]] = []

    def training_step(self, x: torch.Tensor) -> torch.Tensor:
        loss = (self.model(x) ** 2).mean()
        scaler = self.accelerator.scaler
        (loss * (scaler.scale if scaler and scaler.enabled else 1)).backward()
        return loss.detach()

    def train(self, resume_from_checkpoint: Any = None) -> None:
        """Never called."""

    def save_model(self, output_dir: str | None = None) -> None:
        """Nothing is saved."""

    def add_callback(self, callback: Any) -> None:
        self.callback = callback

    def log(self, logs: dict[str, float]) -> None:
        self.logged.append(logs)

    def grads(self) -> list[torch.Tensor]:
        return [p.grad.clone() for p in self.model.parameters() if p.requires_grad]


def attach(
    trainer: Any, lambdas: dict[str, float], *more: Any, fisher: Diagonal | None = None, **options: Any
) -> Attached:
    """With the built-in penalties, and more as (key, penalty)."""
    settings = PenaltySettings(lambdas, **{"log_steps": 1, **options})
    return attach_with(trainer, settings, {**delta_penalties(), **dict(more)}, fisher=fisher)
