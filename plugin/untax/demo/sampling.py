"""Texts sampled from the base model itself."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def sample_ids(base: Path, *, count: int, length: int, seed: str) -> list[list[int]]:
    """``count`` token sequences, begun after the beginning-of-sequence token and ended by a special token.

    Temperature 1, no truncation of the distribution. float64 and a generator of its own make the draws the same on
    any machine.

    Returns:
        sequences of up to ``length`` ids; a special token that ended one is its last id.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64, use_safetensors=True).eval()
    special = {model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id}
    generator = random.Random(seed)
    last, past, columns = torch.full((count, 1), model.config.bos_token_id), None, []
    with torch.inference_mode():
        for _ in range(length):
            output = model(last, past_key_values=past, use_cache=True)
            past = output.past_key_values
            cumulated = output.logits[:, -1].softmax(-1).cumsum(-1)
            uniform = torch.tensor([[generator.random()] for _ in range(count)], dtype=torch.float64)
            last = torch.searchsorted(cumulated, uniform).clamp(max=cumulated.shape[-1] - 1)
            columns.append(last)
    return [_until_special(sequence, special) for sequence in torch.cat(columns, 1).tolist()]


def _until_special(ids: list[int], special: set[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids) if token in special), len(ids) - 1)
    return ids[: end + 1]


def round_trip(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str | None:
    """The text of ``ids``, or None where its tokens would be others than those that were sampled."""
    text = tokenizer.decode(ids)
    return text if tokenizer.encode(text, add_special_tokens=False) == ids else None
