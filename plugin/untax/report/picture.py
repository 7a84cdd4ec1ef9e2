"""Pictures on disk: the same numbers give the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from untax.files import new_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150


@contextmanager
def picture(path: Path, *, font: float) -> Iterator[Figure]:
    """A figure to draw on, which is a PNG or an SVG when the block has ended.

    Args:
        path: the file; its ending says which.
        font: the size of text, in points.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Names of folders are no formulas; the ids in an SVG come from the salt.
    with rc_context({"text.parse_math": False, "font.size": font, "svg.hashsalt": "untax"}), new_file(path) as part:
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        # Without the date and the library's version.
        kind = path.suffix.lower()[1:]
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(part, format=kind, dpi=DPI, metadata=metadata)


def short(name: str) -> str:
    """A name that has room beside a figure."""
    return name if len(name) <= 18 else f"...{name[-15:]}"
