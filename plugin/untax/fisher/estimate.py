"""The diagonal Fisher information of a language model's weights.

For sequences x_1 ... x_N it is

    F_j = 1/N * sum_n (d log p(x_n) / d theta_j)^2

where log p(x_n) is the sum of the log-likelihoods of the sequence's scored tokens. The square is taken per sequence:
that of a batch's gradient would be another quantity. With ``labels="data"`` the tokens are the text's own (empirical
Fisher); with ``"model"`` each is drawn from the model's own distribution at its place, after the text's own tokens: one
draw per place, an unbiased estimate of the Fisher on these contexts. Elastic weight consolidation penalises
lambda/2 * sum_j F_j * delta_j^2 (Kirkpatrick et al. 2017, equation 3; a baseline of Disperse-Then-Merge, section 5.1),
and Fisher-weighted merging takes F as weights (Matena & Raffel 2022, section 3).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from untax.errors import UntaxError
from untax.fisher.sequences import TokenSequence, batches, padded, pass_tokens
from untax.fisher.squares import MixedTokens, Squares
from untax.fisher.weights import Weight

if TYPE_CHECKING:
    import torch

LABELS = ("data", "model")
DEFINITION = (
    "F_j = 1/N * sum_n (d log p(x_n) / d theta_j)^2, log p summed over the scored tokens of sequence x_n; "
    "labels data: the text's own tokens (empirical Fisher); labels model: tokens drawn from the model at each place"
)
IGNORED = -100


def estimate(
    network: Any,
    weights: Sequence[Weight],
    sequences: Sequence[TokenSequence],
    *,
    labels: str = "data",
    seed: int = 42,
    batch_tokens: int | None = None,
    block_elements: int | None = None,
    done: Callable[[int], object] = lambda count: None,
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The diagonal Fisher of some weights; see above for what it is.

    Args:
        network: the causal language model, frozen, in eval mode.
        weights: of the network.
        sequences: N of them.
        labels: ``data`` or ``model``.
        seed: of the tokens drawn with ``model``; a sequence's do not depend on the other sequences.
        batch_tokens: tokens in one pass, padding included; changes rounding, speed and memory only.
        block_elements: elements of the block of per-sequence gradients in memory; likewise.
        done: called with the number of sequences that were finished.

    Returns:
        Name -> F, fp32, in the shape of the weight and on its device; and the linear weights whose layers never ran,
        for which F is zero.

    Raises:
        UntaxError: a gradient is NaN or infinite; the tensor and the sequence are named.
    """
    squares = Squares(weights, block_elements=block_elements)
    one_by_one = squares.one_by_one
    try:
        for batch in batches(sequences, batch_tokens or pass_tokens(network)):
            if not one_by_one:
                try:
                    _step(network, squares, batch, labels, seed)
                except MixedTokens:
                    one_by_one = True
            if one_by_one:
                for sequence in batch:
                    _step(network, squares, [sequence], labels, seed)
            if _not_finite(squares):
                raise _culprit(network, squares, batch, labels, seed)
            done(len(batch))
        return {name: total.div_(len(sequences)) for name, total in squares.sums.items()}, squares.never_ran
    finally:
        squares.close()


def _step(network: Any, squares: Squares, batch: list[TokenSequence], labels: str, seed: int) -> None:
    """Add the squared gradients of each sequence of a batch."""
    import torch
    from torch.nn.functional import cross_entropy

    ids = padded(batch)
    ids, targets = (tensor.to(network.device) for tensor in (ids, _targets(batch, ids)))
    squares.begin(*ids.shape)
    with torch.enable_grad():
        # Nothing that is scored depends on what is to its right, so padding needs no mask, and attention is faster.
        logits = network(input_ids=ids, use_cache=False).logits[:, :-1].float()
        if labels == "model":
            _draw(logits.detach(), targets, batch, seed)
        cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum").backward()
    squares.end()


def _targets(batch: list[TokenSequence], ids: torch.Tensor) -> torch.Tensor:
    """The token to score after each place, or IGNORED; of padded ids (n, width), shape (n, width - 1)."""
    import torch

    targets = torch.full((ids.shape[0], ids.shape[1] - 1), IGNORED, dtype=torch.int64)
    for row, sequence in enumerate(batch):
        targets[row, sequence.start - 1 : len(sequence.ids) - 1] = ids[row, sequence.start : len(sequence.ids)]
    return targets


def _draw(logits: torch.Tensor, targets: torch.Tensor, batch: list[TokenSequence], seed: int) -> None:
    """Put tokens that the model draws in place of the targets.

    Each place has a random number of its own that depends on the seed and its sequence alone, and the token is where
    the cumulated probabilities reach it: batches do not change what is drawn.
    """
    import torch

    for row, sequence in enumerate(batch):
        places = slice(sequence.start - 1, len(sequence.ids) - 1)
        cumulated = logits[row, places].double().softmax(dim=-1).cumsum(dim=-1)
        chance = torch.rand((sequence.scored, 1), dtype=torch.float64, generator=_generator(seed, sequence.position))
        drawn = torch.searchsorted(cumulated, chance.to(logits.device) * cumulated[:, -1:], right=True)
        targets[row, places] = drawn.squeeze(1).clamp_(max=logits.shape[-1] - 1)


def _generator(seed: int, position: int) -> torch.Generator:
    import torch

    hashed = hashlib.blake2b(f"labels:{seed}:{position}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(hashed, "big") >> 1)


def _not_finite(squares: Squares) -> list[str]:
    """The weights with NaN or infinity in their sums, sorted."""
    import torch

    # A sum of squares is finite exactly when all are, short of an overflow; and one transfer for all is enough.
    totals = torch.stack([total.sum(dtype=torch.float64) for total in squares.sums.values()]).tolist()
    return sorted(name for name, total in zip(squares.sums, totals, strict=True) if not math.isfinite(total))


def _culprit(network: Any, squares: Squares, batch: list[TokenSequence], labels: str, seed: int) -> UntaxError:
    """Go through a batch again, one by one, for the sequence and the weight that were not finite."""
    wrong, where = _not_finite(squares), "the sum over several sequences"
    for sequence in batch:
        squares.clear()
        _step(network, squares, [sequence], labels, seed)
        if found := _not_finite(squares):
            wrong, where = found, f"text {sequence.position} of the data, counted from 0 without blank ones"
            break
    more = f" and {len(wrong) - 1} more tensors" if len(wrong) > 1 else ""
    return UntaxError(
        f"The gradient of {wrong[0]}{more} is NaN or too large.",
        where=where,
        fix="Use --dtype float32. If it was, the weights themselves hold NaN or overflow.",
    )
