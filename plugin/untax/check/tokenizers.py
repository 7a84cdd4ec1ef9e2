"""The tokenizers of the trainings, each loaded once."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from untax.check.axolotl_rows import TEMPLATE_KEYS, load_axolotl_tokenizer
from untax.check.findings import Finding
from untax.check.hub import nothing_downloaded
from untax.check.trainings import Training
from untax.check.vocabulary import vocabulary_findings
from untax.data.completion import TOKENIZER_KEYS
from untax.errors import UntaxError
from untax.recipes.checks import is_local

TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab*", "merges.txt", "*.tiktoken", "tekken.json")


@dataclass
class Tokenizers:
    """Loads the tokenizer of a training, and says what is wrong with it.

    Attributes:
        folder: the run folder.
        findings: what was found.
    """

    folder: Path
    findings: list[Finding] = field(default_factory=list)
    _loaded: dict[str, Any] = field(default_factory=dict)

    def of(self, training: Training) -> Any | None:
        """The training's tokenizer, or None for one that is not on this machine or does not load."""
        keys = {key: training.keys.get(key) for key in (*TOKENIZER_KEYS, *TEMPLATE_KEYS) if key != "base_model"}
        known = json.dumps([training.base, keys], sort_keys=True, default=str)
        if known not in self._loaded:
            self._loaded[known] = self._load(training)
        return self._loaded[known]

    def _load(self, training: Training) -> Any | None:
        new = vocabulary_findings(training)
        self.findings += new
        try:
            with nothing_downloaded():
                tokenizer = load_axolotl_tokenizer(training.keys, training.base)
        except UntaxError as error:
            # What Axolotl says of new tokens is advice to train embeddings.
            self.findings += [] if new else self._unloaded(training, error)
            return None
        self.findings += _pad_findings(tokenizer, training)
        return tokenizer

    def _unloaded(self, training: Training, error: UntaxError) -> list[Finding]:
        """Why there is no tokenizer; of a folder that is not there nothing, as its path was found already."""
        key = "tokenizer_config" if training.keys.get("tokenizer_config") else "base_model"
        where, name = f"{training.config}: {key}", str(training.keys.get("tokenizer_config") or training.base)
        folder = self.folder / name
        if not folder.is_dir():
            if is_local(name):
                return []
            fix = f"hf download {name} --include '*.json' '*.model'"
            return [Finding("unknown", where, f"the tokenizer of {name} is not on this machine", fix)]
        if any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
            return [Finding("fail", where, error.problem, error.fix or "Copy the tokenizer's files again.")]
        fix = (
            "Copy the files of the model's tokenizer into it, or name another folder as tokenizer_config under axolotl."
        )
        text = f"{name} has no tokenizer files, such as tokenizer.json or tokenizer.model"
        return [Finding("fail", where, text, fix)]


def _pad_findings(tokenizer: Any, training: Training) -> list[Finding]:
    where = f"{training.config}: special_tokens"
    if tokenizer.pad_token is None:
        fix = "Set special_tokens: {pad_token: ...} to a token that no text has."
        return [Finding("fail", where, "the tokenizer has no pad token, so rows cannot be put into batches", fix)]
    named = (training.keys.get("special_tokens") or {}).get("pad_token")
    if not named and tokenizer.pad_token == tokenizer.eos_token:
        return [Finding("note", where, f"rows are padded with the end-of-sequence token {tokenizer.eos_token}")]
    return []
