"""The file in an environment's site-packages that makes Python run ``import_hook`` at start."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

from untax.errors import UntaxError
from untax.files import write_text
from untax.merge import import_hook

_NAME = "untax_mergekit.pth"
_MARK = "# untax: "
# The loader is the one that Python itself starts with: nothing is imported, and the compiled code is kept.
_TEXT = """\
# Written by `untax mergekit enable`; `untax mergekit disable` removes it.
{mark}{path}
import os, _frozen_importlib_external as loaders; untax = {path!r}; os.path.isfile(untax) and \
exec(loaders.SourceFileLoader("untax", untax).get_code("untax"), {{"__name__": "untax at start"}})
"""


@dataclass(frozen=True)
class HookFile:
    """Where the file is, or would be.

    Attributes:
        path: of the file.
        source: what it runs; None when there is no file.
    """

    path: Path
    source: Path | None

    @property
    def is_own(self) -> bool:
        """Whether it runs this very untax."""
        return self.source == _own_source()


def find() -> HookFile:
    """The present environment's.

    Raises:
        UntaxError: the file cannot be read.
    """
    path = Path(sysconfig.get_path("purelib")) / _NAME
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return HookFile(path, None)
    except OSError as error:
        raise UntaxError(f"The file cannot be read: {error.strerror}.", where=path, fix="Check its rights.") from error
    marked = [line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)]
    return HookFile(path, Path(marked[0] if marked else "unknown"))


def enable() -> HookFile:
    """Write the file, if it is not there for this untax already; the file that was found before is returned.

    Raises:
        UntaxError: site-packages cannot be written to.
    """
    found = find()
    if not found.is_own:
        try:
            write_text(found.path, _TEXT.format(mark=_MARK, path=str(_own_source())))
        except (UntaxError, OSError) as error:
            raise _read_only(found.path) from error
    return found


def disable() -> HookFile:
    """Remove the file, whoever wrote it; the file that was found is returned.

    Raises:
        UntaxError: site-packages cannot be written to.
    """
    found = find()
    try:
        found.path.unlink(missing_ok=True)
    except OSError as error:
        raise _read_only(found.path) from error
    return found


def _own_source() -> Path:
    return Path(import_hook.__file__).resolve()


def _read_only(path: Path) -> UntaxError:
    return UntaxError(
        "The environment's site-packages cannot be written to.",
        where=path,
        fix="Use a virtual environment of your own, or merge with `untax merge`, which needs no such file.",
    )
