"""The base models of the presets: what their ``config.json`` says of their shape, and how they are had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from untax.recipes.cost.architecture import Architecture, from_config


@dataclass(frozen=True)
class Base:
    """A base model of the hub.

    Attributes:
        path: its id.
        name: as texts call it.
        config: the shape, as in its ``config.json``.
        gated: whether its licence must be accepted on the hub first.
        pad_token: what it is padded with, for one whose tokenizer has no padding token.
    """

    path: str
    name: str
    config: dict[str, Any]
    gated: bool = False
    pad_token: str | None = None

    @property
    def architecture(self) -> Architecture:
        """The shape, for estimates."""
        return from_config(self.config, where=self.path)


def _config(
    kind: str, layers: int, hidden: int, intermediate: int, heads: tuple[int, int], vocabulary: int
) -> dict[str, Any]:
    """A ``config.json``; ``heads`` are those of queries, and of keys and values."""
    return {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }


_QWEN3 = {"head_dim": 128}
_TIED = {"tie_word_embeddings": True}

LLAMA2_7B = Base(
    "meta-llama/Llama-2-7b-hf",
    "Llama-2-7B",
    _config("llama", 32, 4096, 11008, (32, 32), 32000),
    gated=True,
    pad_token="</s>",
)
MISTRAL_7B = Base(
    "mistralai/Mistral-7B-v0.1", "Mistral-7B", _config("mistral", 32, 4096, 14336, (32, 8), 32000), pad_token="</s>"
)
TINYLLAMA = Base(
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
    "TinyLlama-1.1B",
    _config("llama", 22, 2048, 5632, (32, 4), 32000),
    pad_token="</s>",
)
LLAMA3_8B = Base(
    "meta-llama/Meta-Llama-3-8B",
    "Llama-3-8B",
    _config("llama", 32, 4096, 14336, (32, 8), 128256),
    gated=True,
    pad_token="<|end_of_text|>",
)
SMOLLM2_135M = Base(
    "HuggingFaceTB/SmolLM2-135M",
    "SmolLM2-135M",
    {**_config("llama", 30, 576, 1536, (9, 3), 49152), **_TIED},
    pad_token="<|endoftext|>",
)
OLMO2_1B = Base("allenai/OLMo-2-0425-1B", "OLMo-2-1B", _config("olmo2", 16, 2048, 8192, (16, 16), 100352))
QWEN3_4B = Base(
    "Qwen/Qwen3-4B-Base", "Qwen3-4B", {**_config("qwen3", 36, 2560, 9728, (32, 8), 151936), **_QWEN3, **_TIED}
)
QWEN3_8B = Base("Qwen/Qwen3-8B-Base", "Qwen3-8B", {**_config("qwen3", 36, 4096, 12288, (32, 8), 151936), **_QWEN3})

BASES = (LLAMA2_7B, MISTRAL_7B, TINYLLAMA, LLAMA3_8B, SMOLLM2_135M, OLMO2_1B, QWEN3_4B, QWEN3_8B)
