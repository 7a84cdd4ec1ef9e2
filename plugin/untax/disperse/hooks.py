"""The built-in dispersal strategies, registered like anyone's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from untax import hookimpl


@hookimpl
def disperse_strategies() -> Mapping[str, Callable[..., Any]]:
    """``random``."""
    from untax.disperse.hashing import random_clusters

    return {"random": random_clusters}
