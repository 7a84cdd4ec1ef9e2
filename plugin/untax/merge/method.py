"""What a merge method is to untax: one pure function on blocks of deltas, and the parameters that it takes.

The streaming engine, ``untax merge --as-adapter`` and mergekit (through ``mergekit_methods``) all use the same object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from untax.adapters.stored import StoredAdapter

Values = Mapping[str, Any]
"""The parameters of one tensor: a value for each shared one, a tuple of K values for each that is given per model."""

REQUIRED: Any = object()


@dataclass(frozen=True)
class Parameter:
    """A key under ``parameters:`` of a mergekit YAML.

    Attributes:
        name: the key.
        kind: ``float``, ``int``, ``bool`` or ``str``.
        per_model: whether each model (but the base) has its own value.
        default: ``REQUIRED`` when there is none.
        counts_base: per model, the base among them (mergekit's ``linear``).
    """

    name: str
    kind: type
    per_model: bool = False
    default: Any = REQUIRED
    counts_base: bool = False


class Deltas(Protocol):
    """The K deltas of one tensor, seen as K matrices: of a tensor with more dimensions, (first, all others)."""

    @property
    def tensor(self) -> str:
        """The tensor's name in the base's checkpoint."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        ...

    @property
    def models(self) -> int:
        """K."""
        ...

    def has(self, model: int) -> bool:
        """Whether the model changes this tensor at all."""
        ...

    def rows(self, model: int, rows: slice) -> torch.Tensor:
        """Rows of one model's delta, fp32, shape (n, columns), to be overwritten at will; zeros where it has none."""
        ...

    def blocks(self) -> Iterator[slice]:
        """Slices of rows that cover the tensor, each small enough for a core's cache."""
        ...


@dataclass(frozen=True)
class Block:
    """Some rows of one tensor, ready to be merged.

    Attributes:
        deltas: shape (K, n, columns), fp32; the method may overwrite it.
        tensor: the tensor's name.
        rows: which rows of the tensor these are.
        shape: of the whole tensor, as rows and columns.
        values: the parameters for this tensor.
        seed: of what is drawn at random; the same draws whatever the order and the number of threads.
        statistics: what the method's ``statistics`` returned for this tensor.
        base: the same rows of the base, fp32, shape (n, columns); only for a method with ``needs_base``.
    """

    deltas: torch.Tensor
    tensor: str
    rows: slice
    shape: tuple[int, int]
    values: Values
    seed: int = 0
    statistics: Any = None
    base: torch.Tensor | None = None


@dataclass(frozen=True)
class Job:
    """One tensor before it is merged: what ``Method.statistics`` sees.

    Attributes:
        deltas: its K deltas.
        values: the parameters for this tensor.
        seed: as in ``Block``.
        whole: what the method's ``whole`` returned for all tensors together.
        base: called with rows, it returns those of the base in fp32; only for a method with ``needs_base``.
        adapters: the adapter of each model; None where the model leaves this tensor as it is, or where it is not known.
            Empty where none is known.
    """

    deltas: Deltas
    values: Values
    seed: int = 0
    whole: Any = None
    base: Callable[[slice], torch.Tensor] | None = None
    adapters: tuple[StoredAdapter | None, ...] = ()


@dataclass(frozen=True)
class Method:
    """A merge method over K deltas of one base.

    Attributes:
        name: ``merge_method`` in the YAML.
        parameters: its keys.
        merge: returns the merged delta of a block, fp32, shape (n, columns), without the base. It must not look beyond
            the block: what concerns the whole tensor comes from ``statistics``.
        statistics: called once for each changed tensor, before its blocks; None when the method needs none.
        whole: called once before everything, with the jobs of all changed tensors, when one tensor is not enough.
        check: called with the same jobs before that, and in a dry run too, to refuse what does not fit by raising an
            ``UntaxError``; it reads no more than headers.
        coefficients: of a method whose result is ``f * base + sum of c_k * delta_k``: returns ((c_1 ... c_K), f). Such
            a method can come out as an adapter.
        base: whether the YAML must name a ``base_model``.
        base_is_model: whether ``base_model`` is one of the K models; it is then the first.
        models: how many models it merges, or None for any number.
        needs_base: whether ``merge`` and ``statistics`` look at the base's values.
        url: the paper.
    """

    name: str
    parameters: tuple[Parameter, ...]
    merge: Callable[[Block], torch.Tensor]
    statistics: Callable[[Job], Any] | None = None
    whole: Callable[[Iterator[Job]], Any] | None = None
    check: Callable[[Sequence[Job]], None] | None = None
    coefficients: Callable[[Values], tuple[tuple[float, ...], float]] | None = None
    base: bool = True
    base_is_model: bool = False
    models: int | None = None
    needs_base: bool = False
    url: str = ""

    def has(self, name: str) -> bool:
        """Whether it takes a parameter."""
        return any(parameter.name == name for parameter in self.parameters)
