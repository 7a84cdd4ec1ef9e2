"""What a training step keeps for its backward pass: counted, tensor by tensor, as transformers and PEFT compute it."""

from __future__ import annotations

from dataclasses import dataclass

from untax.recipes.cost.architecture import Architecture
from untax.recipes.cost.trained import Trained

FULL = 4
"""Bytes of a number in full precision; normalisations and softmax are computed in it."""


@dataclass(frozen=True)
class Step:
    """The batch of one forward pass, and how it is computed.

    Attributes:
        rows: sequences in it; a pair of answers is two.
        length: tokens of each, with their padding.
        width: bytes of a number in the matrix products: 2 in half precision, 4 in full.
        mask_width: bytes that dropout keeps of each number: 1 on a GPU, 4 on a CPU.
        attention: ``flash`` keeps no scores, ``sdpa`` keeps a mask over all pairs of tokens, ``eager`` all scores.
        checkpointing: only the input of each layer is kept.
    """

    rows: int
    length: int
    width: int = 2
    mask_width: int = 1
    attention: str = "sdpa"
    checkpointing: bool = False

    @property
    def tokens(self) -> int:
        """Tokens in the batch, padding among them."""
        return self.rows * self.length


def kept(architecture: Architecture, trained: Trained, step: Step) -> int:
    """Bytes that all layers keep until the backward pass."""
    if step.checkpointing:
        return architecture.layers * step.tokens * architecture.hidden * step.width
    return architecture.layers * layer(architecture, trained, step)


def layer(architecture: Architecture, trained: Trained, step: Step) -> int:
    """Bytes that one decoder layer keeps without checkpointing."""
    each = _norms(architecture, trained, step) + _attention(architecture, step)
    each += 3 * architecture.intermediate * step.width  # gate, its activation, up
    each += _full_inputs(architecture, step) if trained.full else _factors(trained, step)
    return step.tokens * each


def _norms(architecture: Architecture, trained: Trained, step: Step) -> int:
    """A copy of the input in full precision and a root for each token; the normalised input if weights are trained."""
    widths = [architecture.hidden] * architecture.norms
    each = sum(FULL * (width + 1) for width in widths)
    if architecture.head_norms:
        roots = architecture.heads + architecture.kv_heads if architecture.head_norms == "head" else 2
        each += FULL * (architecture.queries + architecture.keys + roots)
    if trained.full and not architecture.plain_norms:
        normalised = architecture.hidden * architecture.norms
        normalised += architecture.queries + architecture.keys if architecture.head_norms else 0
        each += normalised * step.width
    return each


def _attention(architecture: Architecture, step: Step) -> int:
    """Queries, keys, values and the result; a number per head and token, or all scores."""
    if step.attention == "flash":
        return step.width * 2 * (architecture.queries + architecture.keys) + FULL * architecture.heads
    # Beside a mask, keys and values are repeated for each query head.
    each = step.width * 4 * architecture.queries
    if step.attention == "eager":
        scores = FULL + (step.width if step.width < FULL else 0)
        return each + architecture.heads * step.length * scores
    return each + FULL * architecture.heads + step.width * step.length


def _full_inputs(architecture: Architecture, step: Step) -> int:
    """Inputs of the linear layers: two outputs of normalisations and the MLP's product; the attention's is counted."""
    return step.width * (2 * architecture.hidden + architecture.intermediate)


def _factors(trained: Trained, step: Step) -> int:
    """Inputs of the factors, and what lies between them.

    In half precision each adapted layer casts its input for itself. In full precision layers with the same input share
    it, and the attention's result is kept already; with dropout each one has a copy of its own again.
    """
    each = sum(trained.rank * step.width for _ in trained.adapted)
    if step.width < FULL or trained.dropout:
        each += sum(linear.inputs * step.width for linear in trained.adapted)
    else:
        own = {_shared_input(linear.name): linear.inputs for linear in trained.adapted}
        each += sum(inputs * step.width for name, inputs in own.items() if name != "o_proj")
    if trained.dropout:
        each += sum(linear.inputs * step.mask_width for linear in trained.adapted)
    return each


def _shared_input(name: str) -> str:
    """One name for the layers that read the same numbers."""
    last = name.rpartition(".")[2]
    return {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}.get(last, last)
