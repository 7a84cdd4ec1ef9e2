"""What Axolotl's ``type: completion`` makes of a text: its own tokenizer and its own strategy, asked beforehand."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from untax.errors import UntaxError

TOKENIZER_KEYS = (
    *("base_model", "base_model_config", "revision_of_model", "trust_remote_code", "special_tokens", "tokens"),
    *("tokenizer_config", "tokenizer_type", "tokenizer_use_fast", "tokenizer_legacy", "tokenizer_use_mistral_common"),
    "added_tokens_overrides",
)
"""Keys of an Axolotl configuration that decide which tokens a text has."""


@dataclass(frozen=True)
class Completion:
    """Axolotl's tokenisation of plain text.

    Attributes:
        tokenizer: as Axolotl sets it up, with offset mappings.
        strategy: Axolotl's strategy for ``type: completion``.
        sequence_len: the most tokens that a training row has.
    """

    tokenizer: Any
    strategy: Any
    sequence_len: int

    def rows(self, text: str) -> list[int]:
        """The lengths, in tokens, of the training rows that a text becomes; none for a text without tokens."""
        return [len(ids) for ids in self.strategy.tokenize_prompt({"text": [text]}).get("input_ids", [])]

    def tokens(self, text: str) -> int:
        """How many tokens a text has, with the special ones."""
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    def ends(self, text: str) -> list[int]:
        """Where each token of a text ends, in characters; special tokens that are added to it do not count."""
        found = self.tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
        pairs = zip(found["offset_mapping"], found["special_tokens_mask"], strict=True)
        return [end for (start, end), special in pairs if end > start or not special]


def load_completion(cfg: Mapping[str, Any], sequence_len: int) -> Completion:
    """Axolotl's tokenizer and strategy.

    Args:
        cfg: an Axolotl configuration, of which ``TOKENIZER_KEYS`` count.
        sequence_len: the most tokens of a training row.

    Raises:
        UntaxError: the tokenizer cannot be loaded, or knows no offsets.
    """
    from axolotl.loaders import load_tokenizer
    from axolotl.prompt_strategies.completion import load
    from axolotl.utils.dict import DictDefault

    keys = {key: cfg[key] for key in TOKENIZER_KEYS if cfg.get(key) is not None}
    where = keys.get("tokenizer_config") or keys["base_model"]
    with tempfile.TemporaryDirectory() as changed_tokens:
        full = DictDefault({"tokenizer_config": keys["base_model"], **keys, "output_dir": changed_tokens})
        try:
            tokenizer = load_tokenizer(full)
        # transformers raises whatever it meets; the reason is named and kept.
        except Exception as error:
            raise UntaxError(
                f"The tokenizer cannot be loaded: {(str(error).strip().splitlines() or [type(error).__name__])[0]}",
                where=where,
                fix="Name the base model's folder or hub id, with its config.json and tokenizer files.",
            ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UntaxError(
            "This tokenizer does not say where in the text its tokens are, so texts cannot be cut by it.",
            where=where,
            fix="Use a fast one: leave out tokenizer_use_fast, or put a tokenizer.json beside the model.",
        )
    strategy = load(tokenizer, DictDefault({"train_on_inputs": False, "sequence_len": sequence_len}))
    return Completion(tokenizer, strategy, sequence_len)
