"""Who trains into a folder, and with what.

    .untax.lock           locked as long as a process trains into the folder; the kernel frees it when that ends
    .untax-started.json   what the training was started with, to which the checkpoints beside it belong

Axolotl's ``auto_resume_from_checkpoints`` takes whatever checkpoint lies in ``output_dir``, even one of other data.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from untax.errors import UntaxError
from untax.files import make_folder, plain_disk_errors, write_text
from untax.training.asked import Asked, differences

LOCK_NAME = ".untax.lock"
STARTED_NAME = ".untax-started.json"
PATIENCE_SECONDS = 2.0
"""How long to try: whoever asks ``is_claimed`` holds the lock for an instant, a killed training's workers for more."""

# A file system that knows no locks, as some of clusters: one must be able to train there.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}

_held: dict[Path, IO[str]] = {}


def claim(output_dir: Path, *, config: str | None, asked: Asked, resumes: bool) -> None:
    """Keep ``output_dir`` for this process until it ends or calls ``release``, and write what it starts with.

    Args:
        output_dir: where to train; made if it is missing.
        config: the digest of the YAML's text.
        asked: what decides the training.
        resumes: whether the training would go on from whatever checkpoint lies there.

    Raises:
        UntaxError: another process has claimed it, or its checkpoints belong to something else.
    """
    folder = output_dir.resolve()
    if folder not in _held:
        _held[folder] = _locked(output_dir)
    if resumes and any(output_dir.glob("checkpoint-*")) and not _goes_on(started_with(output_dir), config, asked):
        _release(folder)
        raise UntaxError(
            "The checkpoints in this folder belong to another recipe: YAML, data or base model are not those that "
            "they were made with.",
            where=output_dir,
            fix="Move or remove its checkpoint-* folders to start anew, or name the one to go on from with "
            "resume_from_checkpoint.",
        )
    started = {"config": config, "keys": asked.keys, "inputs": dict(asked.inputs), "trained_on": asked.rows}
    write_text(output_dir / STARTED_NAME, json.dumps(started, indent=2, ensure_ascii=False) + "\n")


def _goes_on(begun: Mapping[str, Any] | None, config: str | None, asked: Asked) -> bool:
    """Whether a training may go on from the checkpoints of what was begun."""
    if begun is None:
        return False
    recorded = asked_by(begun)
    if recorded is None:  # By an older version: of the content only the text's digest is known.
        return begun.get("config") == config and not differences(
            Asked(asked.keys, _inputs(begun)), Asked(asked.keys, asked.inputs)
        )
    return not differences(recorded, asked)


def asked_by(begun: Mapping[str, Any]) -> Asked | None:
    """What an interrupted training was asked for, or None where an older version noted less."""
    keys = begun.get("keys")
    return Asked(keys, _inputs(begun), begun.get("trained_on")) if isinstance(keys, Mapping) else None


def _inputs(begun: Mapping[str, Any]) -> dict[str, str]:
    inputs = begun.get("inputs")
    return {str(name): str(digest) for name, digest in inputs.items()} if isinstance(inputs, Mapping) else {}


def release() -> None:
    """Give up this process's claims: the next training in it claims anew."""
    for folder in list(_held):
        _release(folder)


def is_claimed(folder: Path) -> bool:
    """Whether a live process, this one included, trains into ``folder``. Nothing is made there."""
    try:
        handle = (folder / LOCK_NAME).open(encoding="utf-8")
    except OSError:
        return False
    with handle:
        return not _acquire(handle, fcntl.LOCK_SH)


def started_with(folder: Path) -> dict[str, Any] | None:
    """What the training that was last started in ``folder`` began with, or None when that is not known."""
    try:
        started = json.loads((folder / STARTED_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return started if isinstance(started, dict) else None


def _locked(folder: Path) -> IO[str]:
    make_folder(folder)
    path = folder / LOCK_NAME
    with plain_disk_errors(path):
        handle = path.open("a+", encoding="utf-8")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not _acquire(handle, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            handle.close()
            raise UntaxError(
                f"Another process trains into this folder: {holder}.",
                where=folder,
                fix="Wait for it or stop it, or name another output_dir.",
            )
        time.sleep(0.1)
    with plain_disk_errors(path):
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
    return handle


def _acquire(handle: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _release(folder: Path) -> None:
    """Unlock before closing: a forked worker that still has the file open would keep it locked."""
    handle = _held.pop(folder)
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)
    handle.close()
