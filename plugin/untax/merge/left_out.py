"""Tensors that mergekit does not know and leaves out without a word: noted, unless an adapter changes them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from untax.adapters.base import StoredModel
from untax.errors import UntaxError
from untax.merge.mergekit_reader import AdaptedLoader


def left_out(references: Iterable[Any], out: Path) -> list[str]:
    """Names of tensors that an input has and the merged model has not, sorted.

    Args:
        references: the inputs, as mergekit's ModelReferences, read by ``adapters_as_deltas``.
        out: the merged model.

    Raises:
        UntaxError: mergekit never read a tensor that an adapter changes.
    """
    from mergekit.io.tasks import LoaderCache

    written, missing = StoredModel(out).tensors, set[str]()
    for reference in references:
        loader = LoaderCache().get(reference)
        missing.update(name for name in loader.index.tensor_paths if name not in written)
        lost = sorted(set(loader.changes) - loader.used) if isinstance(loader, AdaptedLoader) else []
        if lost:
            raise UntaxError(
                f"mergekit would lose {len(lost)} tensors that an adapter changes and it does not know: {lost[0]}.",
                where=reference.lora,
                fix="Train without that module, or use a merge method that untax merges itself.",
            )
    return sorted(missing)
