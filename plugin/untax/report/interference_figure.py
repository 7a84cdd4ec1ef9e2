"""How much adapters get in each other's way, as a picture."""

from __future__ import annotations

from pathlib import Path

from untax.report.interference import Interference
from untax.report.interference_bars import draw_bars
from untax.report.interference_maps import draw_maps
from untax.report.picture import picture


def draw_interference(path: Path, found: Interference) -> None:
    """Write a PNG or SVG: of one pair bars, layer by layer; of more adapters maps of all pairs.

    The same numbers give the same bytes.
    """
    with picture(path, font=7) as figure:
        if len(found.names) == 2:
            draw_bars(figure, found)
        else:
            draw_maps(figure, found)
