"""Inner products of what goes into linear layers, summed over passes; layers that read one tensor share one sum."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from untax.fisher.weights import Weight

if TYPE_CHECKING:
    import torch

WIDE_BYTES = 4 << 30
"""Up to so many bytes of float64, sums are kept in float64; beyond, in float32."""
# What goes into q, k and v, or into gate and up, is read by layers that follow each other closely.
_REMEMBERED = 4


class Restart(Exception):
    """What was taken for granted does not hold: begin anew with ``products``, which know better now."""


class Products:
    """X^T X for each weight, X the rows that went into its layers.

    The layers of one sum read the very same tensor in every pass. That is found in the first pass that calls them, and
    checked in all others: where it does not hold, ``Restart`` is raised.

    Attributes:
        sums: name of the owner -> its sum, shape (in, in), float64 or float32.
        owners: name of a weight -> the one whose sum it shares, or itself, in the order in which layers were called;
            only of layers that ran.
        one_by_one: whether passes must be of one sequence: layers see the tokens of several in one heap.
    """

    def __init__(self, weights: Sequence[Weight], *, wide_bytes: int = WIDE_BYTES):
        import torch

        self._weights = {weight.name: weight for weight in weights}
        # At most, as if no layer shared its sum.
        size = sum(8 * self.columns(weight.name) ** 2 for weight in weights)
        self._dtype = torch.float64 if size <= wide_bytes else torch.float32
        self.one_by_one = False
        self._alone: set[str] = set()
        self._hooks = [
            layer.register_forward_hook(self._hook(weight.name)) for weight in weights for layer in weight.layers
        ]
        self.clear()

    def columns(self, name: str) -> int:
        """How many features the layers of a weight read."""
        weight = self._weights[name]
        return int(weight.parameter.shape[0 if weight.transposed else 1])

    def clear(self) -> None:
        """Begin anew, with what is known of the layers by now."""
        self.sums: dict[str, torch.Tensor] = {}
        self.owners: dict[str, str] = {}

    def begin(self, lengths: Sequence[int]) -> None:
        """Before a pass over sequences of these lengths, padded on the right to the longest."""
        import torch

        self._shape = (len(lengths), max(lengths))
        self._real = torch.arange(self._shape[1])[None, :] < torch.tensor(lengths)[:, None]
        self._before = set(self.owners)
        self._seen: deque[tuple[Any, int, str]] = deque(maxlen=_REMEMBERED)
        self._calls: dict[str, int] = {}

    def end(self) -> None:
        """After a pass.

        Raises:
            Restart: of two layers that share a sum, one was called and the other not, or one several times.
        """
        self._seen.clear()
        for name, owner in self.owners.items():
            calls = {self._calls.get(name, 0), self._calls.get(owner, 0)}
            if name != owner and calls not in ({0}, {1}):
                self._separate(name)

    def close(self) -> None:
        """Take the hooks off the network."""
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str) -> Any:
        def hook(layer: Any, arguments: tuple[Any, ...], output: Any) -> None:
            inputs = arguments[0]
            if self._shape[0] > 1 and tuple(inputs.shape[:2]) != self._shape:
                self.one_by_one = True
                raise Restart
            self._calls[name] = self._calls.get(name, 0) + 1
            reader = self._reader(inputs, name)
            if name not in self.owners:
                # Only one that began in the same pass has the same sum so far.
                shared = reader not in self._before and name not in self._alone
                self.owners[name] = reader if shared else name
            if self.owners[name] == name:
                self._add(name, inputs)
            elif self.owners[name] != reader:
                self._separate(name)

        return hook

    def _reader(self, inputs: torch.Tensor, name: str) -> str:
        """The owner of the sum that these inputs went into in this pass, or the name itself if there is none."""
        for tensor, version, owner in self._seen:
            if tensor is inputs and inputs._version == version:
                return owner
        if name not in self._alone:
            self._seen.append((inputs, inputs._version, self.owners.get(name, name)))
        return name

    def _separate(self, name: str) -> None:
        self._alone.add(name)
        raise Restart

    def _add(self, name: str, inputs: torch.Tensor) -> None:
        import torch

        rows = inputs.detach()
        if self._shape[0] > 1:
            rows = rows[self._real.to(rows.device)]
        rows = rows.reshape(-1, rows.shape[-1]).float()
        if name not in self.sums:
            columns = self.columns(name)
            self.sums[name] = torch.zeros((columns, columns), dtype=self._dtype, device=rows.device)
        self.sums[name] += rows.T @ rows
