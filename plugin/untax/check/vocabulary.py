"""Tokens that a YAML names and its tokenizer does not have: Axolotl would add them, and new embeddings for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from untax.check.findings import Finding
from untax.check.hub import nothing_downloaded
from untax.check.trainings import Training

LOADED_BY = {
    "trust_remote_code": "trust_remote_code",
    "revision_of_model": "revision",
    "tokenizer_use_fast": "use_fast",
}
"""Key of Axolotl -> argument of transformers."""


def vocabulary_findings(training: Training) -> list[Finding]:
    """A failure for each new token that the base has no row of its embedding for, a note for one that it has.

    Args:
        training: the training; nothing is found if its tokenizer is not on this machine.
    """
    named = list(_named(training.keys))
    if not named or training.keys.get("tokenizer_use_mistral_common"):
        return []
    tokenizer = _plain_tokenizer(training)
    if tokenizer is None:
        return []
    replaced = training.keys.get("added_tokens_overrides") or {}
    known = {*tokenizer.get_vocab(), *(replaced.values() if isinstance(replaced, Mapping) else ())}
    new = [(key, token) for key, token in named if token not in known]
    size = len(tokenizer) + len({token for _, token in new})
    return [
        _finding(training, key, token, tokenizer, size > _rows(training.base, len(tokenizer))) for key, token in new
    ]


def _named(keys: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, token) of each that Axolotl adds unless it is there."""
    special = keys.get("special_tokens")
    for name, value in special.items() if isinstance(special, Mapping) else ():
        yield from _texts(f"special_tokens.{name}", value)
    yield from _texts("tokens", keys.get("tokens"))


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    for token in value if isinstance(value, list) else [value]:
        if isinstance(token, str) and token:
            yield key, token


def _plain_tokenizer(training: Training) -> Any | None:
    """The tokenizer before Axolotl changes it; why it does not load is found elsewhere."""
    from transformers import AutoTokenizer

    keys = training.keys
    given = {argument: keys[key] for key, argument in LOADED_BY.items() if keys.get(key) is not None}
    try:
        with nothing_downloaded():
            return AutoTokenizer.from_pretrained(keys.get("tokenizer_config") or training.base, **given)
    # transformers raises whatever it meets.
    except Exception:
        return None


def _rows(base: str, otherwise: int) -> int:
    """Rows of the base's embedding, some of which may have no token yet."""
    from untax.adapters.base import local_folder

    folder = local_folder(base)
    try:
        config = json.loads(((folder or Path(base)) / "config.json").read_text("utf-8"))
        size = config.get("vocab_size") or config["text_config"]["vocab_size"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return otherwise
    return size if isinstance(size, int) else otherwise


def _finding(training: Training, key: str, token: str, tokenizer: Any, grows: bool) -> Finding:
    where, text = f"{training.config}: {key}", f"'{token}' is not in the vocabulary of {training.base}"
    names = (("end-of-sequence", tokenizer.eos_token), ("unknown", tokenizer.unk_token))
    there = next((f", such as {other} (its {name} token)" for name, other in names if other), "")
    fix = f"Name a token that it has{there}."
    if grows:
        text += "; Axolotl would add it and train new embeddings, which cannot be merged"
        return Finding("fail", where, text, fix)
    text += "; Axolotl would add it and use a row of the embedding that no token has and that was never trained"
    return Finding("note", where, text, fix)
