"""The inner products of what goes into a model's linear layers: what RegMean merges by.

For a linear layer that reads the rows X, one for each token of all texts,

    G = X^T X / (number of tokens)

(Jin et al. 2023, "Dataless Knowledge Fusion by Merging Weights of Language Models", section 3.2). Every token counts,
those of a prompt too; padding does not. What a layer sees twice or not at all, as an expert does, counts twice or not
at all: the divisor is the number of tokens in the texts.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax.errors import UntaxError
from untax.fisher.inputs import Data, Reading, Say, identities, prepare
from untax.fisher.model import Model, checkpoint_shapes
from untax.fisher.output import Progress, check_output, silent, write
from untax.fisher.products import Products, Restart
from untax.fisher.sequences import TokenSequence, batches, padded, pass_tokens
from untax.fisher.weights import Weight, weights_of

if TYPE_CHECKING:
    import torch

DEFINITION = "G = X^T X / (number of tokens), X the inputs of a linear layer at every token of the texts"


@dataclass(frozen=True)
class Found:
    """The Grams of a model.

    Attributes:
        grams: name of a weight -> G, shape (in, in), fp32 or fp64, on the model's device.
        owners: name of a weight that has none of its own -> the one whose layers read the very same tensors.
        never_ran: weights whose layers never ran, for which G is zero.
    """

    grams: dict[str, torch.Tensor]
    owners: dict[str, str]
    never_ran: tuple[str, ...]


@dataclass(frozen=True)
class Made:
    """What was written.

    Attributes:
        path: the file.
        layers: how many weights it covers.
        grams: how many matrices it holds for them.
        samples: N.
        tokens: how many tokens went through the layers.
    """

    path: Path
    layers: int
    grams: int
    samples: int
    tokens: int


def gram(
    model: Model,
    data: Data,
    out: Path,
    reading: Reading,
    *,
    device: str = "auto",
    trust_remote_code: bool = False,
    force: bool = False,
    say: Say = print,
    progress: Progress = silent,
) -> Made:
    """Compute the Gram of every linear layer but the output layer, and write the file and its manifest.

    Nothing is written before all is done.

    Args:
        model: the model.
        data: the texts.
        out: the file to write, ``*.safetensors``; its manifest is written beside it.
        reading: what decides the numbers.
        device: ``auto``, ``cpu`` or ``cuda``.
        trust_remote_code: whether code that comes with the model may run.
        force: replace ``out``.
        say: called with each sentence for the user.
        progress: given N, a context whose value is called with the number of texts that were finished.

    Raises:
        UntaxError: an input or the output is not as it must be, or an inner product is not finite; nothing was written.
    """
    started = time.time()
    check_output(out, force=force)
    prepared = prepare(model, data, reading, device=device, trust_remote_code=trust_remote_code, say=say)
    network, sequences = prepared.network, prepared.sequences
    weights = weights_of(network, "linear", checkpoint_shapes(model.folder), where=model.name)
    with progress(len(sequences)) as done:
        found = grams(network, weights, sequences, done=done)
    if found.never_ran:
        say(f"Warning: G is zero for {len(found.never_ran)} layers that never ran: {found.never_ran[0]}, ...")
    tokens = sum(len(one.ids) for one in sequences)
    facts = {"definition": DEFINITION, **asdict(reading), "samples": len(sequences), "tokens": tokens}
    notes = {
        "shared": json.dumps(found.owners, sort_keys=True),
        "transposed": json.dumps([weight.name for weight in weights if weight.transposed]),
    }
    write(out, "gram", found.grams, facts, identities(model, data, sequences), started=started, notes=notes)
    return Made(out, len(weights), len(found.grams), len(sequences), tokens)


def grams(
    network: Any,
    weights: Sequence[Weight],
    sequences: Sequence[TokenSequence],
    *,
    batch_tokens: int | None = None,
    wide_bytes: int | None = None,
    done: Callable[[int], object] = lambda count: None,
) -> Found:
    """The Grams of some weights; see above for what they are.

    The products of a pass are computed in fp32 and added up in fp64, or in fp32 where fp64 would take too much memory.

    Args:
        network: the causal language model, frozen, in eval mode.
        weights: linear ones of the network.
        sequences: N of them.
        batch_tokens: tokens in one pass, padding included; changes rounding, speed and memory only.
        wide_bytes: up to so many bytes, sums are kept in fp64.
        done: called with the number of sequences that were finished, negative when they are read again.

    Raises:
        UntaxError: an inner product is NaN or infinite; the weight and the sequence are named.
    """
    products = Products(weights) if wide_bytes is None else Products(weights, wide_bytes=wide_bytes)
    finished = 0

    def count(more: int) -> None:
        nonlocal finished
        finished += more
        done(more)

    try:
        while True:
            try:
                _read(network, products, sequences, batch_tokens or pass_tokens(network), count)
                break
            except Restart:
                products.clear()
                count(-finished)
    finally:
        products.close()
    tokens = sum(len(sequence.ids) for sequence in sequences)
    found = {name: total.div_(tokens) for name, total in products.sums.items()}
    never_ran = tuple(weight.name for weight in weights if weight.name not in products.owners)
    for name in never_ran:
        found[name] = _zeros(products.columns(name))
    return Found(found, {name: owner for name, owner in products.owners.items() if name != owner}, never_ran)


def _zeros(size: int) -> torch.Tensor:
    import torch

    return torch.zeros(size, size)


def _read(
    network: Any, products: Products, sequences: Sequence[TokenSequence], tokens: int, count: Callable[[int], None]
) -> None:
    for batch in batches(sequences, 1 if products.one_by_one else tokens):
        _pass(network, products, batch)
        if _not_finite(products):
            raise _culprit(network, products, batch)
        count(len(batch))


def _pass(network: Any, products: Products, batch: list[TokenSequence]) -> None:
    import torch

    products.begin([len(sequence.ids) for sequence in batch])
    with torch.no_grad():
        network(input_ids=padded(batch).to(network.device), use_cache=False)
    products.end()


def _not_finite(products: Products) -> list[str]:
    """The weights with NaN or infinity in their sums, sorted."""
    import torch

    # No inner product is larger than the squares on the diagonal; and one transfer for all is enough.
    totals = torch.stack([total.diagonal().sum(dtype=torch.float64) for total in products.sums.values()]).tolist()
    return sorted(name for name, total in zip(products.sums, totals, strict=True) if not math.isfinite(total))


def _culprit(network: Any, products: Products, batch: list[TokenSequence]) -> UntaxError:
    """Go through a batch again, one by one, for the sequence and the weight that were not finite."""
    wrong, where = _not_finite(products), "the sum over several texts"
    for sequence in batch:
        products.clear()
        _pass(network, products, [sequence])
        if found := _not_finite(products):
            wrong, where = found, f"text {sequence.position} of the data, counted from 0 without blank ones"
            break
    more = f" and {len(wrong) - 1} more layers" if len(wrong) > 1 else ""
    return UntaxError(
        f"What goes into {wrong[0]}{more} is NaN or too large.",
        where=where,
        fix="Use --dtype float32. If it was, the weights themselves hold NaN or overflow.",
    )
