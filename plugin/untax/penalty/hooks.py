"""The built-in penalties, registered like anyone's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from untax import hookimpl


@hookimpl
def delta_penalties() -> Mapping[str, Callable[..., Any]]:
    """``delta_l1``, ``delta_l2`` and ``delta_ewc``."""
    from untax.penalty.ewc import add_ewc
    from untax.penalty.l1 import add_l1
    from untax.penalty.l2 import add_l2

    return {"delta_l1": add_l1, "delta_l2": add_l2, "delta_ewc": add_ewc}
