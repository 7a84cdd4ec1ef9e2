"""Writing so that nothing is ever half-written: beside, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from untax.errors import UntaxError

_FIXES = {
    errno.ENOSPC: "Free some space, then run the same command again; nothing half-written is left.",
    errno.EDQUOT: "Your disk quota is used up: free some space, then run the same command again.",
    errno.EFBIG: "The file system takes no file this large: name a folder on another one.",
    errno.EIO: "The disk fails: name a folder on another one.",
    errno.EACCES: "Make the folder writable or name another one.",
    errno.EPERM: "Make the folder writable or name another one.",
    errno.EROFS: "The file system is read-only: name another folder.",
    errno.ENOTDIR: "A part of this path is a file: name another folder.",
    errno.ENOTEMPTY: "Another process filled the folder meanwhile: name another one.",
    errno.EEXIST: "A part of this path is a file: name another folder.",
}
# Never about something that the caller was reading.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that replaces it when the block ends well.

    On an exception, and on a full disk, ``path`` stays as it was and the temporary file is removed.

    Raises:
        UntaxError: the disk is full, or the folder cannot be written to.
    """
    with plain_disk_errors(path):
        make_folder(path.parent)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(descriptor)
        part = Path(name)
        try:
            yield part
            part.chmod(0o666 & ~_umask())
            _sync(part)
            part.replace(path)
            _sync(path.parent)
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
        UntaxError: ``path`` exists already and is no empty folder, or the disk is full.
    """
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        problem = "The output folder is not empty." if path.is_dir() else "The output folder is a file or a link."
        raise UntaxError(problem, where=path, fix="Name another folder or remove it.")
    with plain_disk_errors(path):
        make_folder(path.parent)
        part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
        try:
            yield part
            part.chmod(0o777 & ~_umask())
            for entry in part.rglob("*"):
                _sync(entry)
            # Renaming onto an empty folder replaces it; onto one that was filled meanwhile, fails.
            part.replace(path)
            _sync(path.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def make_folder(path: Path) -> None:
    """Make a folder and its parents.

    Raises:
        UntaxError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, path) from error


@contextlib.contextmanager
def plain_disk_errors(path: Path) -> Iterator[None]:
    """Turn what the disk refuses inside the block into an UntaxError about ``path``; other exceptions pass."""
    try:
        yield
    except OSError as error:
        beside = str(path.parent) in (str(error.filename), str(Path(str(error.filename)).parent))
        if error.errno in _DISK or (error.errno in _FIXES and beside):
            raise disk_error(error, path) from error
        raise
    except UntaxError:
        raise
    except Exception as error:
        # safetensors reports a full disk by an exception class of its own.
        if "os error 28" in str(error):
            raise disk_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), path) from error
        raise


def disk_error(error: OSError, path: Path) -> UntaxError:
    """An OSError as a sentence about the disk, with the path it happened at."""
    fix = _FIXES.get(error.errno or 0, "See the reason above.")
    return UntaxError(f"Cannot read or write: {error.strerror or error}.", where=path, fix=fix)


def escapes(path: Path, folder: Path) -> bool:
    """Whether ``path``, taken from ``folder``, lies outside it once links and ``..`` are resolved."""
    return not (folder / path).resolve().is_relative_to(folder.resolve())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
