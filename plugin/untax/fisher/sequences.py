"""Texts as token sequences, of which some or all tokens are scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from untax.data.text_files import Text
from untax.errors import UntaxError

if TYPE_CHECKING:
    import torch

# Tokens in one pass, padding included, and elements of its logits (1 GB of fp32).
CPU_TOKENS, GPU_TOKENS = 2048, 16384
LOGITS = 1 << 28


@dataclass(frozen=True)
class TokenSequence:
    """One sequence x_n.

    Attributes:
        position: the number of its text in the data.
        ids: its token ids.
        start: index of the first token that is scored; at least 1, since the first token follows nothing.
    """

    position: int
    ids: tuple[int, ...]
    start: int

    @property
    def scored(self) -> int:
        """How many tokens are scored."""
        return len(self.ids) - self.start


@dataclass(frozen=True)
class Tokenised:
    """What became of texts.

    Attributes:
        sequences: those with a token to score, in the order of the texts.
        cut: how many of them had more tokens.
        left_out: how many texts have no token to score: they are one token long, or their prompt takes all the room.
    """

    sequences: tuple[TokenSequence, ...]
    cut: int
    left_out: int


def tokenise(texts: Iterable[Text], tokenizer: Any, *, length: int) -> Tokenised:
    """The first ``length`` tokens of each text.

    A text gets the special tokens that the tokenizer begins with. A response is tokenised apart from its prompt, as
    Axolotl's ``type: alpaca`` does, and its end-of-sequence token is not scored.
    """
    sequences, cut, left_out = [], 0, 0
    for text in texts:
        ids, start = _ids(text, tokenizer)
        if min(len(ids), length) <= start:
            left_out += 1
            continue
        cut += len(ids) > length
        sequences.append(TokenSequence(text.position, tuple(ids[:length]), start))
    return Tokenised(tuple(sequences), cut, left_out)


def _ids(text: Text, tokenizer: Any) -> tuple[list[int], int]:
    if not text.prompt:
        return tokenizer(text.text, verbose=False)["input_ids"], 1
    before = tokenizer(text.prompt, verbose=False)["input_ids"]
    if before and before[-1] == tokenizer.eos_token_id:
        before = before[:-1]
    ids = before + tokenizer(text.text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids, max(1, len(before))


def check_vocabulary(sequences: Iterable[TokenSequence], embeddings: int, *, where: object) -> None:
    """Make sure that the model has an embedding for every token.

    Raises:
        UntaxError: it does not; tokenizer and model do not belong together.
    """
    highest = max(max(sequence.ids) for sequence in sequences)
    if highest >= embeddings:
        raise UntaxError(
            f"The tokenizer gives the token {highest}, but the model has only {embeddings} embeddings.",
            where=where,
            fix="Put the model's own tokenizer beside it.",
        )


def batches(sequences: Sequence[TokenSequence], tokens: int) -> Iterator[list[TokenSequence]]:
    """Sequences of like length together, the longest first: at most ``tokens`` tokens, padding included, or one."""
    ordered = sorted(sequences, key=lambda sequence: (-len(sequence.ids), sequence.position))
    start = 0
    while start < len(ordered):
        size = max(1, tokens // len(ordered[start].ids))
        yield ordered[start : start + size]
        start += size


def pass_tokens(network: Any) -> int:
    """How many tokens, padding included, a network reads in one pass."""
    most = GPU_TOKENS if network.device.type == "cuda" else CPU_TOKENS
    return int(min(most, LOGITS // network.get_input_embeddings().weight.shape[0]))


def padded(batch: Sequence[TokenSequence]) -> torch.Tensor:
    """Token ids, shape (n, longest), padded on the right by each sequence's last one.

    Causal networks need no mask for that: nothing depends on what is to its right.
    """
    import torch

    ids = torch.empty((len(batch), max(len(sequence.ids) for sequence in batch)), dtype=torch.int64)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        ids[row, len(sequence.ids) :] = sequence.ids[-1]
    return ids
