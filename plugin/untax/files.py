"""Writing so that nothing is ever half-written: beside, fsync, rename."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from untax.errors import UntaxError


def _sync_parent(path: Path) -> None:
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block ends well.

    On an exception, and on a full disk, ``path`` stays as it was and the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(descriptor)
    part = Path(name)
    try:
        yield part
        part.chmod(0o666 & ~_umask())
        with part.open("rb+") as handle:
            os.fsync(handle.fileno())
        part.replace(path)
        _sync_parent(path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` (UTF-8) in one step."""
    with new_file(path) as part:
        part.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` that becomes ``path`` when the block ends well.

    Raises:
        UntaxError: ``path`` exists already, or the disk is full.
    """
    if path.exists() and any(path.iterdir()):
        raise UntaxError("The output folder is not empty.", where=path, fix="Name another folder or remove it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield part
        part.chmod(0o777 & ~_umask())
        for file in part.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            path.rmdir()
        part.replace(path)
        _sync_parent(path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def disk_error(error: OSError, path: Path) -> UntaxError:
    """An OSError as a sentence about the disk, with the path it happened at."""
    import errno

    fix = {
        errno.ENOSPC: "Free some space, then run the same command again; nothing half-written is left.",
        errno.EDQUOT: "Your disk quota is used up: free some space, then run the same command again.",
        errno.EACCES: "Make the folder writable or name another one.",
        errno.EROFS: "The file system is read-only: name another folder.",
    }.get(error.errno or 0, "See the reason above.")
    return UntaxError(f"Cannot write: {error.strerror or error}.", where=path, fix=fix)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def escapes(path: Path, folder: Path) -> bool:
    """Whether ``path``, taken from ``folder``, lies outside it once links and ``..`` are resolved."""
    return not (folder / path).resolve().is_relative_to(folder.resolve())
