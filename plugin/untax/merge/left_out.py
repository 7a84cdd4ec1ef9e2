"""Tensors that mergekit does not know and leaves out without a word: noted, unless an adapter changed them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from untax.errors import UntaxError
from untax.merge.checks import check_model


def left_out(references: list[Any], out: Path) -> dict[str, str | None]:
    """Tensors that an input has and the output has not: name -> the adapter that changed it, if one did."""
    from mergekit.common import ModelReference
    from mergekit.io.tasks import LoaderCache

    written = check_model(out)
    found: dict[str, str | None] = {}
    for reference in references:
        loader = LoaderCache().get(reference)
        names = [name for name in loader.index.tensor_paths if name not in written]
        base = LoaderCache().get(ModelReference(model=reference.model)) if names and reference.lora else None
        for name in names:
            changed = base is not None and not _equal(loader, base, name)
            found[name] = str(reference.lora) if changed else found.get(name)
    return found


def _equal(one: Any, other: Any, name: str) -> bool:
    if name not in other.index.tensor_paths:
        # A tied output layer is written out by transformers, though the base stores it once.
        return _is_copy(one, name)
    return bool((one.get_tensor(name) == other.get_tensor(name)).all())


def _is_copy(loader: Any, name: str) -> bool:
    tensor = loader.get_tensor(name)
    embedding = next((key for key in loader.index.tensor_paths if key.endswith("embed_tokens.weight")), None)
    return embedding is not None and name == "lm_head.weight" and bool((loader.get_tensor(embedding) == tensor).all())


def refuse_lost_deltas(missing: dict[str, str | None]) -> list[str]:
    """The names that ``left_out`` found, when no adapter changed any of them.

    Raises:
        UntaxError: an adapter did.
    """
    lost = {name: adapter for name, adapter in missing.items() if adapter is not None}
    if lost:
        name, adapter = next(iter(lost.items()))
        raise UntaxError(
            f"mergekit would lose {len(lost)} tensors that an adapter changed and that it does not know: {name}.",
            where=adapter,
            fix="Train without that module, or merge the adapter with PEFT's merge_and_unload.",
        )
    return sorted(missing)
