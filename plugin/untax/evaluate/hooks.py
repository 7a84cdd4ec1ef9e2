"""The built-in suites, registered like anyone's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from untax import hookimpl


@hookimpl
def eval_suites() -> Mapping[str, Path]:
    """``demo``."""
    return {"demo": Path(__file__).parent / "suites" / "demo"}
