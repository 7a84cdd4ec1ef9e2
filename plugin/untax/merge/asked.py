"""What a merge was asked for: its YAML by content, and the models that it names by their digests, not their paths."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from untax.manifest import NOT_READ

_CONTENT = re.compile("[0-9a-f]{64}")


def tokenizer_of(model: str) -> str:
    """The name under which a manifest's inputs have the digest of what lies beside a model's weights."""
    return f"tokenizer of {model}"


def as_json(raw: Any) -> Any:
    """A YAML's content as a manifest keeps it: what JSON does not know, such as a date, as text."""
    return json.loads(json.dumps(raw, default=str))


def differences(keys: Any, inputs: Mapping[str, str], wanted: Any, digest_of: Callable[[str], str | None]) -> list[str]:
    """What a merge would be made of otherwise: inputs whose content changed, else keys of the YAML.

    Args:
        keys: the YAML's content when it was made.
        inputs: the digests of what it was made of, by the names in that YAML.
        wanted: the YAML's content now.
        digest_of: the present digest of a name in it; None for one that is no thing of this machine.
    """
    return list(dict.fromkeys(_differing(keys, wanted, "the YAML", inputs, digest_of)))


def _differing(
    old: Any, new: Any, key: str, inputs: Mapping[str, str], digest_of: Callable[[str], str | None]
) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            if old.get(name) is not None or new.get(name) is not None:
                yield from _differing(old.get(name), new.get(name), str(name), inputs, digest_of)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for one, other in zip(old, new, strict=True):
            yield from _differing(one, other, key, inputs, digest_of)
    elif isinstance(old, str) and isinstance(new, str):
        parts = old.split("+"), new.split("+")
        if len(parts[0]) != len(parts[1]):
            yield key
            return
        for one, other in zip(*parts, strict=True):
            if not _same_input(one, other, inputs.get(one), digest_of):
                yield one if one == other else key
            elif inputs.get(tokenizer_of(one)) not in (None, present := digest_of(tokenizer_of(other))) and present:
                yield tokenizer_of(other)
    elif old != new:
        yield key


def _same_input(old: str, new: str, recorded: Any, digest_of: Callable[[str], str | None]) -> bool:
    if not isinstance(recorded, str):
        return old == new
    present = digest_of(new)
    if _CONTENT.fullmatch(recorded) and present is not None and present != NOT_READ:
        return present == recorded
    return old == new and (present in (None, NOT_READ, recorded) or recorded == NOT_READ)
