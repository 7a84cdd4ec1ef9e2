"""Statistics of the models, one file per model, as parameters of a merge: opened once, found whole before the merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from untax.adapters.stored import ADAPTER_FILES, StoredAdapter
from untax.errors import UntaxError
from untax.manifest import digest_files
from untax.merge.method import Job

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


def check_owners(kind: Callable[[Path], Any], jobs: Sequence[Job], parameter: str) -> None:
    """Make sure that each model has a file of its own, made from that very model.

    A file that names no adapter, and a model whose adapter is not known, are not compared.

    Args:
        kind: what reads a file, from its path; the result has ``metadata`` and ``path``.
        jobs: all of the merge.
        parameter: the one with a file for each model; the command that makes such files has its name.

    Raises:
        UntaxError: a file is given for two models, or it was made from another adapter than its model has.
    """
    adapters = {model: own for job in jobs for model, own in enumerate(job.adapters) if own is not None}
    digests = {model: digest_files(adapter.folder, ADAPTER_FILES) for model, adapter in adapters.items()}
    for paths in dict.fromkeys(tuple(job.values[parameter]) for job in jobs):
        files = open_all(kind, paths)
        for model, file in enumerate(files):
            made_from = file.metadata.get("adapter")
            if made_from and model in digests and made_from != digests[model]:
                known = next((adapters[other] for other in digests if digests[other] == made_from), None)
                raise _of_another(file.path, adapters[model], known, parameter)
        _refuse_repeated(paths, adapters, parameter)


def _of_another(path: Path, adapter: StoredAdapter, known: StoredAdapter | None, parameter: str) -> UntaxError:
    other = f"that of {known.folder}" if known else "or this one before it was trained again"
    return UntaxError(
        f"The file was made from another adapter than {adapter.folder}, whose model it is given for: {other}.",
        where=f"{path}, key {parameter}",
        fix=f"Give each model its own file; untax {parameter} BASE+{adapter.folder} makes one.",
    )


def _refuse_repeated(paths: Sequence[str], adapters: Mapping[int, StoredAdapter], parameter: str) -> None:
    seen: dict[Path, int] = {}
    for model, path in enumerate(paths):
        first = seen.setdefault(Path(path).resolve(), model)
        if first != model:
            names = [str(adapters[one].folder) if one in adapters else f"model {one}" for one in (first, model)]
            raise UntaxError(
                f"One file is given for two models, {' and '.join(names)}.",
                where=f"{path}, key {parameter}",
                fix=f"Give each model a file of its own: untax {parameter} BASE+ADAPTER. Without one, use linear.",
            )
