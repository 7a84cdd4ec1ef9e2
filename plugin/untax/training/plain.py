"""Errors inside Axolotl as one sentence instead of a traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from untax.errors import UntaxError

P = ParamSpec("P")
R = TypeVar("R")


def plain_errors(method: Callable[P, R]) -> Callable[P, R]:
    """Turn an UntaxError inside Axolotl into its message and exit code 2; ``UNTAX_DEBUG=1`` keeps the traceback."""

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except UntaxError as error:
            if os.environ.get("UNTAX_DEBUG"):
                raise
            print(f"untax: error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None

    return wrapped
