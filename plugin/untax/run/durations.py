"""Times as people say them."""

from __future__ import annotations

MINUTE, HOUR = 60, 3600


def exactly(seconds: float) -> str:
    """``12 s``, ``3 min 20 s``, ``4 h 05 min``."""
    whole = max(0, round(seconds))
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE:02} s"
    return f"{whole // HOUR} h {whole % HOUR // MINUTE:02} min"


def roughly(seconds: float) -> str:
    """An estimate, which has no seconds from ten minutes on: ``12 s``, ``3 min 20 s``, ``12 min``, ``4 h 05 min``."""
    if 10 * MINUTE <= seconds < HOUR - MINUTE / 2:
        return f"{round(seconds / MINUTE)} min"
    return exactly(seconds)
