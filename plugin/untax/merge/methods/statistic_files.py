"""Statistics of the models, one file per model, as parameters of a merge: opened once, found whole before the merge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from untax.errors import UntaxError

Opened = TypeVar("Opened")


def open_all(kind: Callable[[Path], Opened], paths: Sequence[str]) -> tuple[Opened, ...]:
    """The file of each model; each is opened anew only when it was changed.

    Args:
        kind: what reads a file, from its path.
        paths: relative to the present folder.

    Raises:
        UntaxError: what ``kind`` raises.
    """
    return tuple(_open(kind, path, _state(Path(path))) for path in paths)


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0  # Whoever opens the file says what is wrong.
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)
def _open(kind: Callable[[Path], Any], path: str, state: tuple[int, int]) -> Any:
    return kind(Path(path))


def have(files: Sequence[Any], name: str, known: Callable[[Any], bool]) -> bool:
    """Whether the files have a statistic of a tensor.

    Args:
        files: of all models, each with a ``path``.
        name: the tensor's name.
        known: whether one of them has it.

    Raises:
        UntaxError: some have it and others lack it.
    """
    there = [known(file) for file in files]
    if any(there) and not all(there):
        lacking, other = files[there.index(False)], files[there.index(True)]
        raise UntaxError(
            f"There is nothing of {name} in this file, but in {other.path}.",
            where=lacking.path,
            fix="Make all files in the same way, each from its own model of one base.",
        )
    return all(there)
