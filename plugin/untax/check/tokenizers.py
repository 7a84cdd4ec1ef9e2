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
from untax.data.completion import TOKENIZER_KEYS
from untax.errors import UntaxError


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
        where = f"{training.config}: base_model"
        try:
            with nothing_downloaded():
                tokenizer = load_axolotl_tokenizer(training.keys, training.base)
        except UntaxError as error:
            here = (self.folder / training.base).is_dir()
            fix = "" if here else f"hf download {training.base} --include '*.json' '*.model'"
            text = error.problem if here else f"the tokenizer of {training.base} is not on this machine"
            self.findings.append(Finding("fail" if here else "unknown", where, text, fix))
            return None
        self.findings += _pad_findings(tokenizer, training)
        return tokenizer


def _pad_findings(tokenizer: Any, training: Training) -> list[Finding]:
    where = f"{training.config}: special_tokens"
    if tokenizer.pad_token is None:
        fix = "Set special_tokens: {pad_token: ...} to a token that no text has."
        return [Finding("fail", where, "the tokenizer has no pad token, so rows cannot be put into batches", fix)]
    named = (training.keys.get("special_tokens") or {}).get("pad_token")
    if not named and tokenizer.pad_token == tokenizer.eos_token:
        return [Finding("note", where, f"rows are padded with the end-of-sequence token {tokenizer.eos_token}")]
    return []
