"""The merge methods of untax inside mergekit: any ``Method`` that mergekit does not have, as one of its own."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax.adapters.base import StoredModel
from untax.adapters.blocks import row_blocks
from untax.adapters.change_kinds import as_matrix
from untax.adapters.statistics import FLOATING
from untax.errors import UntaxError
from untax.merge.deltas import adapters_of, table_shape
from untax.merge.mergekit_reader import AdaptedLoader, gathered, without_adapter
from untax.merge.method import REQUIRED, Block, Job, Method, Parameter, Values
from untax.plugins import registry

if TYPE_CHECKING:
    import torch

    from untax.adapters.changes import Change

    # The deltas of all models as matrices, and the base as one, in fp32.
    Loaded = tuple[Sequence[torch.Tensor], torch.Tensor]

_TASK: ContextVar[Any] = ContextVar("the task that mergekit executes", default=None)


def own_methods() -> dict[str, Method]:
    """Registered methods that work on deltas from a ``base_model``, and that mergekit itself does not have."""
    from mergekit.merge_methods.registry import registered_methods

    stock = {method.spec.name for method in registered_methods()}
    known = registry("merge_methods").items()
    return {name: method for name, method in known if name not in stock and not method.base_is_model}


@functools.cache
def register() -> None:
    """Make mergekit know them, once in a process.

    Raises:
        UntaxError: a plugin with merge methods cannot be imported.
    """
    from mergekit.merge_methods.base import FunctionalGroupMergeMethod
    from mergekit.merge_methods.registry import register as register_method
    from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask

    for method in own_methods().values():
        register_method(FunctionalGroupMergeMethod(_spec(method), Merging(method)))
    stock = ExecuteMergeMethodTask.execute

    def execute(self: Any, *arguments: Any, **keywords: Any) -> Any:
        # The group that a method sees has the output's name only; in a merge of slices the inputs' are others.
        token = _TASK.set(self)
        try:
            return stock(self, *arguments, **keywords)
        finally:
            _TASK.reset(token)

    ExecuteMergeMethodTask.execute = execute


def _spec(method: Method) -> Any:
    from mergekit.merge_methods.base import BasePolicy, InputContract, MergeMethodSpec

    count = method.models
    return MergeMethodSpec(
        name=method.name,
        reference_url=method.url or None,
        parameters=tuple(map(_parameter_spec, method.parameters)),
        contract=InputContract(base=BasePolicy.REQUIRED, min_inputs=2, min_non_base=count or 1, max_non_base=count),
        uses_accelerator=False,
    )


def _parameter_spec(parameter: Parameter) -> Any:
    from mergekit.merge_methods.base import MISSING, ParameterScope, ParameterSpec

    return ParameterSpec(
        name=parameter.name,
        value_type=parameter.kind if parameter.default is not None else parameter.kind | None,
        scope=ParameterScope.NON_BASE if parameter.per_model else ParameterScope.SHARED,
        default=MISSING if parameter.default is REQUIRED else parameter.default,
    )


@dataclass(frozen=True)
class LoadedDeltas:
    """See ``untax.merge.method.Deltas``.

    Attributes:
        tensor: its name in the base's checkpoint.
        shape: as rows and columns.
        changed: for each model, whether it changes the tensor at all.
        load: gives the deltas and the base.
    """

    tensor: str
    shape: tuple[int, int]
    changed: tuple[bool, ...]
    load: Callable[[], Loaded]

    @property
    def models(self) -> int:
        """K."""
        return len(self.changed)

    def has(self, model: int) -> bool:
        """Whether the model changes this tensor at all."""
        return self.changed[model]

    def rows(self, model: int, rows: slice) -> torch.Tensor:
        """Rows of one delta, to be overwritten at will."""
        return self.load()[0][model][rows].clone()

    def base(self, rows: slice) -> torch.Tensor:
        """The same rows of the base."""
        return self.load()[1][rows].clone()

    def blocks(self) -> Iterator[slice]:
        """Slices that cover the rows."""
        yield from row_blocks(*self.shape)


@dataclass(frozen=True)
class Merging:
    """Merges one of mergekit's tensor groups by a method: entries minus base in fp32, merged block by block, plus base.

    What is drawn at random depends on ``torch.initial_seed()``, which mergekit sets to its --random-seed.
    """

    method: Method

    def __call__(self, group: Any, /, **parameters: Any) -> torch.Tensor:
        """The merged tensor, in the dtype and on the device of the base's.

        Raises:
            UntaxError: the inputs are not the same tensor of their models, or what the method raises.
        """
        import torch

        base, entries = group.base.tensor, group.non_base
        values = self._values(parameters, entries)
        weights = _weights()
        name, changed = _names(weights, group) if weights else (group.metadata.name or "", [True] * len(entries))
        plain = as_matrix(base.detach().cpu().float())
        loaded = ([as_matrix(entry.tensor.detach().cpu().float()) - plain for entry in entries], plain)
        deltas = LoadedDeltas(name, table_shape(base.shape), tuple(changed), lambda: loaded)
        seed = torch.initial_seed()
        needed = self.method.whole is not None or self.method.check is not None
        whole = _whole(self.method, group, values, seed) if needed else None
        job = Job(deltas, values, seed, whole, deltas.base if self.method.needs_base else None)
        statistics = None if self.method.statistics is None else self.method.statistics(job)
        merged = torch.empty_like(plain)
        for rows in deltas.blocks():
            stacked = torch.stack([delta[rows] for delta in loaded[0]])
            own = plain[rows].clone() if self.method.needs_base else None
            block = Block(stacked, name, rows, deltas.shape, values, seed, statistics, own)
            merged[rows] = plain[rows] + self.method.merge(block)
        return merged.reshape(base.shape).to(base)

    def _values(self, parameters: dict[str, Any], entries: Sequence[Any]) -> Values:
        """A tuple of K values for what is given per model."""
        per_model = {parameter.name for parameter in self.method.parameters if parameter.per_model}
        return {
            name: tuple(value.values_for(entries)) if name in per_model else value for name, value in parameters.items()
        }


def _weights() -> Any:
    """What the task at hand reads from which model; None when mergekit merges tensors that are in memory."""
    task = _TASK.get()
    return None if task is None else gathered(task.gather_tensors)


def _names(weights: Any, group: Any) -> tuple[str, list[bool]]:
    """The tensor's name in the base's checkpoint, and whether each other input changes it."""
    from mergekit.io.tasks import LoaderCache

    if len({weights[entry.id].name for entry in group.entries}) > 1:
        raise UntaxError(
            f"The inputs of {group.metadata.name} are different layers, so their difference is no delta.",
            where="the slices of the merge",
            fix="Give all sources of a slice the same layer_range.",
        )
    base = LoaderCache().get(group.base.id)
    weight = weights[group.base.id]
    spelled = [weight.name, *(weight.aliases or ()), *(weight.tied_names or ())]
    name = next((name for name in spelled if name in base.index.tensor_paths), weight.name)
    return name, [_changes(LoaderCache().get(entry.id), entry.id, group.base.id, name) for entry in group.non_base]


def _changes(loader: Any, model: Any, base: Any, name: str) -> bool:
    """A full model may change every tensor; an adapter of the base, those that it says."""
    return not _is_adapted(loader, model, base) or name in loader.changes


def _is_adapted(loader: Any, model: Any, base: Any) -> bool:
    return isinstance(loader, AdaptedLoader) and without_adapter(model) == base


def _change(loader: Any, model: Any, base: Any, name: str) -> Change | None:
    return loader.changes.get(name) if _is_adapted(loader, model, base) else None


# By the loader of the base, which goes with the merge.
_WHOLES: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def _whole(method: Method, group: Any, values: Values, seed: int) -> Any:
    """What the method's ``whole`` returns for all tensors of these models with these values, computed once.

    Before that, its ``check`` sees the same tensors.

    The models are read whole, tensor by tensor, also where slices use a part of them only; and the values of the tensor
    at hand stand for those of all.
    """
    from mergekit.io.tasks import LoaderCache

    if not _weights():
        raise UntaxError(
            f"{method.name} needs all tensors of its models, and here is only {group.metadata.name}.",
            fix="Merge the models' folders by a YAML.",
        )
    models = tuple(entry.id for entry in group.non_base)
    base = LoaderCache().get(group.base.id)
    key = (method.name, models, repr(sorted(values.items())), seed)
    with _LOCK:
        found = _WHOLES.setdefault(base, {})
        if key not in found:
            jobs = functools.partial(_jobs, method, group.base.id, models, values, seed)
            if method.check is not None:
                method.check(list(jobs()))
            found[key] = None if method.whole is None else method.whole(jobs())
        return found[key]


def _jobs(method: Method, base: Any, models: Sequence[Any], values: Values, seed: int) -> Iterator[Job]:
    """A job for every tensor that any model changes; values are read when they are asked for, one tensor at a time."""
    from mergekit.io.tasks import LoaderCache

    loader, others = LoaderCache().get(base), [LoaderCache().get(model) for model in models]

    @functools.lru_cache(maxsize=1)
    def load(name: str) -> Loaded:
        plain = as_matrix(loader.get_tensor(name).float())
        return [as_matrix(other.get_tensor(name).float()) - plain for other in others], plain

    for name, info in StoredModel(Path(loader.index.base_path)).tensors.items():
        there = info.dtype in FLOATING and all(name in other.index.tensor_paths for other in others)
        changed = [_changes(other, model, base, name) for other, model in zip(others, models, strict=True)]
        if there and any(changed):
            deltas = LoadedDeltas(name, table_shape(info.shape), tuple(changed), functools.partial(load, name))
            own = [_change(other, model, base, name) for other, model in zip(others, models, strict=True)]
            plain = deltas.base if method.needs_base else None
            yield Job(deltas, values, seed, base=plain, adapters=adapters_of(own))
