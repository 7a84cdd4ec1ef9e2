"""Whether the models of a merge speak the same tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from untax.errors import UntaxError
from untax.manifest import digest_json
from untax.merge.references import Reference

_SPECIAL = ("bos_token", "eos_token", "unk_token")
_FIX = "Merge models of one tokenizer; or say --allow-crimes, or choose one with tokenizer_source: in the YAML."


def check_tokenizers(references: Iterable[Reference]) -> None:
    """Compare the tokenizers that lie in the folders of the bases and adapters.

    What a model and its training may well differ in does not count: the padding token, the chat template.

    Raises:
        UntaxError: two of them have other tokens, or other special tokens.
    """
    seen: list[tuple[Path, dict[str, Any]]] = []
    for folder in dict.fromkeys(_folders(references)):
        facts = _facts(folder)
        for other, known in seen:
            _compare(other, known, folder, facts)
        seen.append((folder, facts))


def _folders(references: Iterable[Reference]) -> Iterable[Path]:
    for reference in references:
        yield reference.base.folder
        if reference.adapter is not None:
            yield reference.adapter.folder


def _compare(one: Path, first: dict[str, Any], other: Path, second: dict[str, Any]) -> None:
    for what in first.keys() & second.keys():
        if first[what] != second[what]:
            if what == "vocabulary":
                problem = f"The tokenizers have other tokens: {one} and {other}."
            else:
                problem = f"The tokenizers have other special tokens: {what} is {first[what]!r} in {one} and"
                problem += f" {second[what]!r} in {other}."
            raise UntaxError(problem, where=other, fix=_FIX)


def _facts(folder: Path) -> dict[str, Any]:
    """What is compared: the tokens by their numbers, and the special ones; only what the folder says."""
    facts: dict[str, Any] = {}
    whole = _read(folder / "tokenizer.json")
    model = whole.get("model") if isinstance(whole.get("model"), dict) else None
    if model is not None and isinstance(model.get("vocab"), dict | list):
        added = {one["content"]: one["id"] for one in whole.get("added_tokens") or [] if isinstance(one, dict)}
        vocabulary = model["vocab"]
        numbers = vocabulary if isinstance(vocabulary, dict) else {piece[0]: n for n, piece in enumerate(vocabulary)}
        facts["vocabulary"] = digest_json({**numbers, **added})
    config = _read(folder / "tokenizer_config.json")
    for name in _SPECIAL:
        token = config.get(name)
        if token is not None:
            facts[name] = token["content"] if isinstance(token, dict) else token
    return facts


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UntaxError(f"The tokenizer cannot be read: {error}.", where=path, fix="Copy it again.") from error
    return content if isinstance(content, dict) else {}
