"""When commands without a YAML of their own are finished: replay texts and statistics.

What they read may have moved: it is known by its digest, and only what is not here by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from untax.recipes.graph import Node
from untax.replay.made import tokenizer_identity
from untax.replay.request import read_like, tokenizer_of, unchanged
from untax.run.commands import same, values
from untax.run.digests import path_digest, stale_inputs
from untax.run.yamls import read_yaml


def otherwise_typed(node: Node, manifest: dict[str, Any], folder: Path) -> str | None:
    """Why what a command made is not what it would make now, or None."""
    recorded = manifest.get("command")
    if not isinstance(recorded, list):
        return "it was made by another command line"
    typed = [str(word) for word in recorded]
    if not same(_renamed(node, typed, manifest.get("inputs") or {}, folder), node.command):
        return "it was made by another command line"
    changed = _changed_replay(node, manifest, folder) if node.kind == "replay" else _changed(node, manifest, folder)
    return f"{', '.join(changed)} was changed" if changed else None


def _changed(node: Node, manifest: Mapping[str, Any], folder: Path) -> list[str]:
    """Inputs of a statistic that are not what they were."""
    named, inputs = _inputs_of_statistic(node.command), manifest.get("inputs") or {}
    recorded = {name: inputs[role] for role, name in named.items() if role in inputs}
    return [name for name, digest in recorded.items() if path_digest(name, folder) not in (digest, None)]


def _inputs_of_statistic(command: Sequence[str]) -> dict[str, str]:
    base, _, adapter = (command[2] if len(command) > 2 else "").partition("+")
    data = values(command, "--data")
    return {"base": base, "adapter": adapter, "data": data[-1] if data else ""}


def _changed_replay(node: Node, manifest: dict[str, Any], folder: Path) -> list[str]:
    tokenizer = _tokenizer(node, manifest, folder)
    changed = [] if _like_as_before(node, manifest, folder) else [values(node.command, "--like")[-1]]
    inputs = manifest.get("inputs") or {}
    texts = dict(zip(values(manifest["command"], "--texts"), values(node.command, "--texts"), strict=False))
    left = {name: digest for name, digest in inputs.items() if not name.startswith("texts/")}
    moved = {f"texts/{texts.get(name.removeprefix('texts/'), '')}": d for name, d in inputs.items() if name not in left}
    return changed + stale_inputs({"inputs": {**left, **moved}}, {"tokenizer": tokenizer}, folder)


def _tokenizer(node: Node, manifest: Mapping[str, Any], folder: Path) -> str | None:
    """The tokenizer that is asked for now: where the command names the base it may have moved."""
    bases, asked = values(node.command, "--base"), (manifest.get("request") or {}).get("cfg") or {}
    own = isinstance(asked, Mapping) and not asked.get("tokenizer_config")
    return bases[-1] if bases and own else tokenizer_of(manifest)


def _like_as_before(node: Node, manifest: dict[str, Any], folder: Path) -> bool:
    """Whether the YAML whose instruction data is replayed still says what counts; its other keys do not."""
    configs = values(node.command, "--like")
    if not configs:
        return True
    like = read_like(read_yaml(folder / configs[-1]), folder, folder / node.outputs[0])
    bases, lengths = values(node.command, "--base"), values(node.command, "--sequence-len")
    before = values(manifest["command"], "--base")
    return unchanged(
        manifest,
        like,
        # A base that has moved is the one that it was, or its tokenizer is told to be another.
        base=before[-1] if bases and before else bases[-1] if bases else None,
        sequence_len=int(lengths[-1]) if lengths else None,
        trust_remote_code="--trust-remote-code" in node.command,
    )


def _renamed(node: Node, typed: list[str], inputs: Mapping[str, str], folder: Path) -> list[str]:
    """The recorded command line with the present names of what only moved."""
    if node.kind == "replay":
        pairs = zip(values(typed, "--texts"), values(node.command, "--texts"), strict=False)
        names = {old: new for old, new in pairs if path_digest(new, folder) == inputs.get(f"texts/{old}")}
        bases = zip(values(typed, "--base"), values(node.command, "--base"), strict=False)
        names |= {
            old: new
            for old, new in bases
            if (folder / new).is_dir() and tokenizer_identity(folder / new) == inputs.get("tokenizer")
        }
    else:
        before, now = _inputs_of_statistic(typed), _inputs_of_statistic(node.command)
        same_now = {
            role: before[role] == now[role] or bool(now[role] and path_digest(now[role], folder) == inputs.get(role))
            for role in now
        }
        names = {before["data"]: now["data"]} if same_now["data"] else {}
        if same_now["base"] and same_now["adapter"] and len(typed) > 2:
            names[typed[2]] = node.command[2]
    return [_word(word, names) for word in typed]


def _word(word: str, names: Mapping[str, str]) -> str:
    option, equals, value = word.partition("=")
    return f"{option}={names.get(value, value)}" if equals and option.startswith("--") else names.get(word, word)
