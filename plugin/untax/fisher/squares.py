"""Per-sequence gradients of linear weights, squared and summed as a backward pass hands them over.

A linear layer's weight (out, in) has the gradient G^T X in one sequence, where X (T, in) is what went into the layer
and G (T, out) the gradient of what came out. So one pass over a batch gives the gradient of each of its sequences,
which the batch's own gradient, their sum, does not; and the weights themselves need no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from untax.fisher.weights import Weight

if TYPE_CHECKING:
    import torch

# Elements of one block: 16 MB of fp32 on a CPU, 256 MB on a GPU. Smaller blocks make thin, slow products.
CPU_ELEMENTS = 1 << 22
GPU_ELEMENTS = 1 << 26


class MixedTokens(Exception):
    """A layer saw the tokens of several sequences in one heap, as the experts of a mixture do: go one by one."""


class _Call:
    """What one call of a layer read, and the gradient of what it gave once that is known."""

    def __init__(self, inputs: torch.Tensor):
        self.inputs = inputs
        self.gradient: torch.Tensor | None = None


class Squares:
    """Sums over sequences of squared gradients.

    Attributes:
        sums: name -> fp32 tensor of the weight's shape.
    """

    def __init__(self, weights: Sequence[Weight], *, block_elements: int | None = None):
        import torch

        self.weights = {weight.name: weight for weight in weights}
        self.sums = {
            weight.name: torch.zeros(weight.parameter.shape, dtype=torch.float32, device=weight.parameter.device)
            for weight in weights
        }
        self._block = block_elements
        self._batch = (0, 0)
        self._calls: dict[str, list[_Call]] = {}
        self._ran: set[str] = set()
        self._hooks = [
            layer.register_forward_hook(self._hook(weight.name)) for weight in weights for layer in weight.layers
        ]
        self._others = [weight for weight in weights if not weight.layers]
        for weight in self._others:
            weight.parameter.requires_grad_(True)

    @property
    def one_by_one(self) -> bool:
        """Whether autograd is needed for some weights, and so a pass for each sequence."""
        return bool(self._others)

    @property
    def never_ran(self) -> list[str]:
        """Linear weights whose layers were not called so far, sorted."""
        return sorted(set(self.weights) - self._ran - {weight.name for weight in self._others})

    def begin(self, sequences: int, tokens: int) -> None:
        """Before a forward pass over ``sequences`` sequences, padded on the right to ``tokens`` tokens."""
        self._batch = (sequences, tokens)
        self._calls = {}

    def end(self) -> None:
        """After its backward pass: what autograd found, and layers of which a call had no part in the result."""
        for name in list(self._calls):
            self._add(name)
        for weight in self._others:
            if weight.parameter.grad is not None:
                self.sums[weight.name] += weight.parameter.grad.float().square_()
                weight.parameter.grad = None

    def clear(self) -> None:
        """Set all sums to zero."""
        for total in self.sums.values():
            total.zero_()

    def close(self) -> None:
        """Take the hooks off the network."""
        for hook in self._hooks:
            hook.remove()
        for weight in self._others:
            weight.parameter.requires_grad_(False)

    def _hook(self, name: str) -> Any:
        def hook(layer: Any, arguments: tuple[Any, ...], output: torch.Tensor) -> None:
            inputs = arguments[0].detach()
            if self._batch[0] > 1 and tuple(inputs.shape[:2]) != self._batch:
                raise MixedTokens
            self._ran.add(name)
            call = _Call(inputs)
            self._calls.setdefault(name, []).append(call)
            if not output.requires_grad:
                # The first layers: nothing before them has a gradient.
                output.requires_grad_(True)
            output.register_hook(lambda gradient: self._arrived(name, call, gradient))

        return hook

    def _arrived(self, name: str, call: _Call, gradient: torch.Tensor) -> None:
        call.gradient = gradient
        # A weight that is applied twice has one gradient, the sum over both: it is squared when both are there.
        if all(one.gradient is not None for one in self._calls[name]):
            self._add(name)

    def _add(self, name: str) -> None:
        import torch

        calls = [call for call in self._calls.pop(name) if call.gradient is not None]
        if not calls:
            return
        inputs = self._joined([call.inputs for call in calls])
        gradients = self._joined([call.gradient for call in calls])
        left, right = (inputs, gradients) if self.weights[name].transposed else (gradients, inputs)
        right = right.float()
        for rows in self._blocks(left.shape[2], len(right) * right.shape[2], right.is_cuda):
            # (n, T, rows) and (n, T, columns) to (n, rows, columns): the gradients of n sequences.
            block = torch.bmm(left[:, :, rows].float().transpose(1, 2), right)
            self.sums[name][rows] += block.square_().sum(dim=0)

    def _joined(self, parts: list[Any]) -> torch.Tensor:
        """Calls one after the other as (sequences, T, features); a single sequence may come in any other shape."""
        import torch

        shaped = [part.reshape(self._batch[0], -1, part.shape[-1]) for part in parts]
        return shaped[0] if len(shaped) == 1 else torch.cat(shaped, dim=1)

    def _blocks(self, rows: int, elements: int, on_gpu: bool) -> Iterator[slice]:
        limit = self._block or (GPU_ELEMENTS if on_gpu else CPU_ELEMENTS)
        step = max(1, limit // max(1, elements))
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))
