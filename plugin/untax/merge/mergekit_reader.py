"""base+adapter for mergekit without a merged copy: each tensor is read as base + delta, in fp32, when it is needed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax.adapters.base import StoredModel
from untax.adapters.changes import Change, read_changes
from untax.adapters.stored import StoredAdapter
from untax.merge.references import Source

if TYPE_CHECKING:
    import torch
    from mergekit.common import ModelReference


class AdaptedLoader:
    """What mergekit uses of its LazyTensorLoader, for a base with an adapter.

    Attributes:
        index: of the base's tensors; the adapter adds none.
        changes: what the adapter changes, by tensor name.
        used: the names of the tensors that were read.
    """

    def __init__(self, base: Any, changes: dict[str, Change]):
        self._base, self.index = base, base.index
        self.changes, self.used = changes, set[str]()

    def get_tensor(
        self, key: str, device: str = "cpu", aliases: list[str] | None = None, raise_on_missing: bool = True
    ) -> torch.Tensor | None:
        """The base's tensor as it is stored, or base + delta in fp32 where the adapter changes it.

        Raises:
            KeyError: the base has no such tensor, and ``raise_on_missing``.
        """
        names = [name for name in (key, *(aliases or ())) if name in self.index.tensor_paths]
        if not names and not raise_on_missing:
            return None
        name = names[0] if names else key
        base = self._base.get_tensor(name, device=device)
        self.used.add(name)
        return self.changes[name].merged(base.float()) if name in self.changes else base

    def flush(self) -> None:
        """Close the base's files."""
        self._base.flush()


def install() -> Callable[[], None]:
    """Make mergekit read every base+adapter by an ``AdaptedLoader``, and copy config and tokenizer from the base.

    Returns:
        What undoes it.
    """
    from mergekit.common import ModelReference
    from mergekit.io.tasks import LoaderCache

    stock_get, stock_merged = LoaderCache.get, ModelReference.merged

    def get(self: Any, model: ModelReference) -> Any:
        if model.lora is not None and model not in self.loaders:
            self.loaders[model] = _open(stock_get(self, without_adapter(model)), model)
        return stock_get(self, model)

    def merged(self: ModelReference, *arguments: Any, **options: Any) -> ModelReference:
        # Of its donor mergekit.merge copies configuration and tokenizer; whoever else asks for a merged copy (such as
        # mergekit-evolve) reads its weights.
        if sys._getframe(1).f_globals.get("__name__") == "mergekit.merge":
            return without_adapter(self)
        return stock_merged(self, *arguments, **options)

    def undo() -> None:
        LoaderCache.get, ModelReference.merged = stock_get, stock_merged

    LoaderCache.get, ModelReference.merged = get, merged
    return undo


@contextlib.contextmanager
def adapters_as_deltas() -> Iterator[None]:
    """``install``, for as long as the block runs.

    mergekit keeps open models as long as the process lives, by their paths alone: they are forgotten at both ends.
    """
    from mergekit.io.tasks import LoaderCache

    LoaderCache().loaders.clear()
    undo = install()
    try:
        yield
    finally:
        undo()
        LoaderCache().loaders.clear()


def without_adapter(model: ModelReference) -> ModelReference:
    """The reference to the base alone."""
    return model if model.lora is None else model.model_copy(update={"lora": None})


def gathered(sources: Any) -> Any:
    """What a task of mergekit's that gathers a tensor from all models reads: model -> WeightInfo; None for others."""
    while hasattr(sources, "gather_tensors"):
        sources = sources.gather_tensors
    return getattr(sources, "weight_info", None)


def _open(base: Any, model: ModelReference) -> AdaptedLoader:
    adapter = StoredAdapter(Source(model.lora.path, model.lora.revision).folder)
    return AdaptedLoader(base, read_changes(adapter, StoredModel(Path(base.index.base_path))))
