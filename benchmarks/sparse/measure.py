"""What a trained adapter gained, what it cost, and how sparse it is."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

END_OF_TEXT = "<|endoftext|>"
STORIES = 30
# Short, so that most of what is computed is rows.
WITH_INPUT, WITHOUT_INPUT = "{instruction}\n{input}\n", "{instruction}\n"


def read_stories(path: Path) -> list[str]:
    """Texts like those of the base's pretraining; the tax is measured on the first ones."""
    with gzip.open(path, "rt", encoding="utf-8") as handle:
        return [text.strip() for text in handle.read().split(END_OF_TEXT) if text.strip()]


class Scales:
    """NLL per token of held-out responses and of the base's own kind of text, for adapters of one base."""

    def __init__(self, base: str, held_out: Path, stories: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.base = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        rows = [json.loads(line) for line in held_out.read_text(encoding="utf-8").splitlines()]
        self.responses = [
            self._ids((WITH_INPUT if row["input"] else WITHOUT_INPUT).format(**row), row["output"]) for row in rows
        ]
        self.stories = [self._ids("", text) for text in read_stories(stories)[:STORIES]]

    def _ids(self, prompt: str, text: str) -> tuple[list[int], int]:
        """Tokens, and how many of them are not scored."""
        before = self.tokenizer(prompt)["input_ids"]
        after = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        end = [self.tokenizer.eos_token_id] if prompt else []
        return (before + after + end)[:512], len(before)

    def of(self, model: Any) -> dict[str, float]:
        return {"response_nll": self._nll(model, self.responses), "story_nll": self._nll(model, self.stories)}

    def _nll(self, model: Any, texts: list[tuple[list[int], int]]) -> float:
        import torch

        total, count = 0.0, 0
        ordered = sorted(texts, key=lambda text: len(text[0]))
        for start in range(0, len(ordered), 25):
            batch = ordered[start : start + 25]
            width = len(batch[-1][0])
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            labels = torch.full((len(batch), width), -100)
            for row, (tokens, unscored) in enumerate(batch):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                labels[row, unscored : len(tokens)] = torch.tensor(tokens[unscored:])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[:, :-1].double()
            wanted = labels[:, 1:]
            total += float(
                torch.nn.functional.cross_entropy(logits[wanted != -100], wanted[wanted != -100], reduction="sum")
            )
            count += int((wanted != -100).sum())
        return total / count

    def adapter(self, folder: Path, scales: tuple[float, ...] = (1.0,)) -> list[dict[str, float]]:
        """With the delta multiplied by each scale."""
        from peft import PeftModel

        model = PeftModel.from_pretrained(self.base, folder).eval()
        layers = [module for module in model.modules() if isinstance(getattr(module, "scaling", None), dict)]
        own = [layer.scaling["default"] for layer in layers]
        found = []
        for scale in scales:
            for layer, value in zip(layers, own, strict=True):
                layer.scaling["default"] = value * scale
            found.append({"scale": scale, **self.of(model)})
        self.base = model.unload()
        return found


def sparsity(folder: Path) -> dict[str, float]:
    """Shares averaged over the layers, as in PAFT's figure 2, from the dense deltas."""
    from untax.adapters.stored import StoredAdapter

    shares = [
        ((delta.abs() < 1e-5).double().mean().item(), (delta == 0).double().mean().item())
        for _, delta in StoredAdapter(folder).deltas()
    ]
    return {
        "sparsity": sum(below for below, _ in shares) / len(shares),
        "zeros": sum(zero for _, zero in shares) / len(shares),
    }
