"""The merge methods that come with untax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from untax import hookimpl

if TYPE_CHECKING:
    from untax.merge.method import Method


@hookimpl
def merge_methods() -> Mapping[str, Method]:
    """By the names that YAMLs have under ``merge_method``."""
    from untax.merge.methods.dare import dare_exact, dare_linear, dare_ties
    from untax.merge.methods.fisher import fisher
    from untax.merge.methods.linear import linear, task_arithmetic
    from untax.merge.methods.nuslerp import nuslerp
    from untax.merge.methods.regmean import regmean
    from untax.merge.methods.slerp import slerp
    from untax.merge.methods.ties import ties, ties_global

    methods = (linear, task_arithmetic, ties, dare_linear, dare_ties, slerp, nuslerp)
    own = (fisher, regmean, ties_global, dare_exact)
    return {method.name: method for method in (*methods, *own)}
