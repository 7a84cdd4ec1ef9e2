"""The peak of one optimizer step in Axolotl's own trainers, against the estimate: all that torch allocates in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from toys import DPO_CHANGES, Workspace, write_jsonl
from untax.recipes.cost.known import read_architecture
from untax.recipes.cost.memory import training_memory

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
TEXT = "red blue toy cat dog runs and plays with a little boy in the park while mom sings " * 50
CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
FULL = dict.fromkeys(
    (
        *("adapter", "lora_r", "lora_alpha", "lora_dropout", "lora_target_linear"),
        *("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"),
    )
)
PAIRS = DPO_CHANGES["datasets"]
ARGILLA = {"datasets": [{"path": "chats.jsonl", "type": "chat_template.argilla"}], "chat_template": "chatml"}
COMPLETIONS = [
    {
        "path": "completions.jsonl",
        "type": {
            "field_prompt": "prompt",
            "field_completion": "completion",
            "field_label": "label",
            "prompt_format": "{prompt}",
            "completion_format": "{completion}",
        },
    }
]
DPO = {"rl": "dpo", "rl_beta": 0.1, "datasets": PAIRS}
KTO = {"rl": "kto", "rl_beta": 0.1, "datasets": COMPLETIONS, "remove_unused_columns": False}
CASES: dict[str, dict[str, Any]] = {
    "sft": {},
    "sft, checkpointing": CHECKPOINTING,
    "sft, full": FULL,
    "dpo": DPO,
    "dpo, checkpointing": {**DPO, **CHECKPOINTING},
    "orpo": {"rl": "orpo", **ARGILLA},
    "simpo": {"rl": "simpo", "rl_beta": 0.1, "simpo_gamma": 0.5, "cpo_alpha": 0.0, "datasets": PAIRS},
    "kto": KTO,
    "kto, checkpointing": {**KTO, **CHECKPOINTING},
}
QUICK = [("sft", 16384), ("dpo, checkpointing", 512)]
SLOW = [(case, vocabulary) for vocabulary in (512, 16384) for case in CASES if (case, vocabulary) not in QUICK]


def make_base(folder: Path, tokenizer: Path, vocabulary: int) -> None:
    """A random Llama with the bundled tokenizer, whose ids are below the vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**SHAPE, vocab_size=vocabulary, eos_token_id=2)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)


def write_data(folder: Path) -> None:
    """Rows of about 500 tokens for every kind of training."""

    def text(length: int, start: int) -> str:
        return TEXT[start : start + length]

    def chat(question: str, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    rows = [(text(200, index), text(800 + index, index), text(780 - index, index + 3)) for index in range(24)]
    write_jsonl(folder / "sft.jsonl", [{"instruction": a, "input": "", "output": b} for a, b, _ in rows])
    write_jsonl(folder / "preference.jsonl", [{"prompt": a, "chosen": b, "rejected": c} for a, b, c in rows])
    write_jsonl(
        folder / "chats.jsonl", [{"prompt": a, "chosen": chat(a, b), "rejected": chat(a, c)} for a, b, c in rows]
    )
    write_jsonl(
        folder / "completions.jsonl",
        [{"prompt": a, "completion": b, "label": index % 2 == 0} for index, (a, b, _) in enumerate(rows)],
    )


def peak_of_third_step(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Where a trainer's third step, when nothing is made for the first time, leaves its peak and its longest row."""
    import torch
    import transformers

    found: dict[str, int] = {"steps": 0}
    original = transformers.Trainer.training_step

    def training_step(self: Any, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
        found["steps"] += 1
        if found["steps"] != 3:
            return original(self, model, inputs, *more, **named)
        found["length"] = max(value.shape[1] for value in inputs.values() if getattr(value, "ndim", 0) == 2)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            output = original(self, model, inputs, *more, **named)
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        now = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            found["peak"] = max(found.get("peak", 0), now)
        return output

    monkeypatch.setattr(transformers.Trainer, "training_step", training_step)
    return found


@pytest.mark.parametrize(
    ("case", "vocabulary"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_peak(
    case: str,
    vocabulary: int,
    workspace: Workspace,
    base_model: Path,
    axolotl_train: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    make_base(workspace.folder / "base", base_model, vocabulary)
    write_data(workspace.folder)
    changes = {"base_model": "./base", "lora_r": 8, "sequence_len": 1024, "max_steps": 3, "plugins": None}
    config = workspace.config(**{**changes, "dataloader_num_workers": 0, **CASES[case]})
    found = peak_of_third_step(monkeypatch)
    axolotl_train(config)
    shape = read_architecture(workspace.folder / "base" / "config.json")
    estimate = training_memory(shape, yaml.safe_load(config.read_text()), "cpu", length=found["length"])
    record_property("estimate", f"{estimate.step / found['peak']:.3f} of {found['peak']:,} bytes")
    assert estimate.step == pytest.approx(found["peak"], rel=0.07)
