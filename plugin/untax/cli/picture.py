"""What the commands that draw have in common."""

from __future__ import annotations

from pathlib import Path

from untax.errors import UntaxError

FORMATS = (".png", ".svg")


def check_picture(path: Path | None, option: str) -> None:
    """Refuse, before the work, a picture that cannot be drawn.

    Raises:
        UntaxError: its name ends otherwise.
    """
    if path is not None and path.suffix.lower() not in FORMATS:
        raise UntaxError(
            "The picture is a PNG or an SVG.", where=f"{option} {path}", fix="End its name in .png or .svg."
        )
