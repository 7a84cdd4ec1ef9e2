"""Trainings that differ in the penalty only: without one, with naive autograd, and with untax's gradient."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

# Hidden size, intermediate size, layers, heads, heads of keys and values, vocabulary, dtype. The small vocabulary is
# tied, so that the head is at most 10% of the parameters; the large shapes are TinyLlama's and Llama-2's.
SHAPES = {
    "20M": (512, 1408, 6, 8, 8, 4096, "float32"),
    "60M": (640, 1728, 12, 10, 10, 4096, "float32"),
    "125M": (768, 2048, 17, 12, 12, 4096, "float32"),
    "300M": (1024, 2816, 24, 16, 16, 4096, "float32"),
    "1B": (2048, 5632, 22, 32, 4, 32000, "bfloat16"),
    "7B": (4096, 11008, 32, 32, 32, 32000, "bfloat16"),
}
ON_A_GPU_ONLY = ("1B", "7B")
VARIANTS = ("none", "naive", "ours")
RANK = 16
LAMBDA = 1e-4


class Training:
    """As much of a Trainer as untax.penalty.attach sees, and the optimizer step around it."""

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer, *, naive: bool = False):
        self.model, self.optimizer, self.naive = model, optimizer, naive
        self.accelerator = SimpleNamespace(distributed_type="NO", sync_gradients=True, scaler=None, state=None)
        self.args, self.state = SimpleNamespace(optim="adamw_torch"), SimpleNamespace(global_step=0)
        self.accumulation = 1
        self.attached: Any = None

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=batch.is_cuda and self.model.dtype == torch.bfloat16):
            loss = self.model(input_ids=batch, labels=batch).loss
            if self.naive:
                loss = loss + LAMBDA * naive_l1(self.model)
        loss = loss / self.accumulation
        loss.backward()
        return loss.detach()

    def backward(self, batches: list[torch.Tensor]) -> float:
        self.accumulation, loss = len(batches), 0.0
        for index, batch in enumerate(batches):
            self.accelerator.sync_gradients = index == len(batches) - 1
            loss += float(self.training_step(batch))
        return loss

    def finish(self, loss: float) -> None:
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.global_step += 1
        self.log({"loss": loss})

    def step(self, batches: list[torch.Tensor]) -> None:
        self.finish(self.backward(batches))

    def train(self, resume_from_checkpoint: Any = None) -> None:
        """Never called: the benchmark takes the steps."""

    def save_model(self, output_dir: str | None = None) -> None:
        """Never called: nothing is saved."""

    def add_callback(self, callback: Any) -> None:
        """Never called back: nothing is saved or pruned."""

    def log(self, logs: dict[str, float]) -> None:
        """What a trainer prints; attach adds norms to it every ten steps."""


def naive_l1(model: Any) -> torch.Tensor:
    """sum of |s * B @ A| over all layers, in fp32, with autograd's graph."""
    from peft.tuners.lora.layer import LoraLayer

    total = torch.zeros((), device=model.device)
    with torch.autocast(model.device.type, enabled=False):
        for module in model.modules():
            if isinstance(module, LoraLayer):
                b, a = module.lora_B["default"].weight.float(), module.lora_A["default"].weight.float()
                total = total + (module.scaling["default"] * (b @ a)).abs().sum()
    return total


def make_trainings(size: str, device: str) -> dict[str, Training]:
    """One of each variant, on the same model and optimizer."""
    from untax.penalty.attach import attach
    from untax.penalty.l1 import add_l1
    from untax.penalty.settings import PenaltySettings

    model = make_model(size, device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    trainings = {name: Training(model, optimizer, naive=name == "naive") for name in VARIANTS}
    ours = trainings["ours"]
    ours.attached = attach(ours, PenaltySettings({"delta_l1": LAMBDA}), {"delta_l1": add_l1})
    return trainings


def make_model(size: str, device: str) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    hidden, intermediate, layers, heads, kv, vocab, dtype = SHAPES[size]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        vocab_size=vocab,
        tie_word_embeddings=size not in ON_A_GPU_ONLY,
        use_cache=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        base = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        if size == "7B":
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            base.enable_input_require_grads()
        lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", init_lora_weights=False)
        return get_peft_model(base, lora).to(device).train()
