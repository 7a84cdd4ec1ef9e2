"""What a node's command line says, and whether it is the one that its output was made by."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

# They decide whether something is made, not what.
WITHOUT_EFFECT = {"--force", "--debug"}


def values(command: Sequence[str], option: str) -> list[str]:
    """The values of an option, typed as ``--option value`` or ``--option=value``."""
    return [value for name, value in itertools.pairwise(_words(command)) if name == option]


def same(recorded: object, command: Sequence[str]) -> bool:
    """Whether a manifest's command line is this one, but for what does not decide the result."""
    return isinstance(recorded, list) and list(_words(map(str, recorded))) == list(_words(command))


def _words(command: Iterable[str]) -> Iterator[str]:
    for word in command:
        option, equals, value = word.partition("=")
        if option in WITHOUT_EFFECT:
            continue
        if equals and option.startswith("--"):
            yield from (option, value)
        else:
            yield word
