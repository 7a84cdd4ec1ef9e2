"""What is common to statistics of a model on texts: the texts as tokens, and the network that reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from untax.data import text_files as texts
from untax.errors import UntaxError
from untax.fisher.model import Model, load_network, load_tokenizer, place
from untax.fisher.sequences import Tokenised, TokenSequence, check_vocabulary, tokenise
from untax.manifest import digest_file, digest_json

Say = Callable[[str], object]


@dataclass(frozen=True)
class Reading:
    """What decides the numbers, besides model and data.

    Attributes:
        samples: N, how many texts.
        sequence_len: tokens of a text that are read.
        seed: of which texts are taken.
        dtype: ``float32`` or ``bfloat16``, of the passes; sums are kept in float32 or better.
    """

    samples: int = 256
    sequence_len: int = 512
    seed: int = 42
    dtype: str = "float32"


@dataclass(frozen=True)
class Data:
    """Where the texts are from.

    Attributes:
        path: the file.
        prompt: what is put before the response of a row with an instruction.
        column: of rows, the one with the text.
        separator: of plain text, what stands between two texts.
    """

    path: Path
    prompt: texts.Prompt
    column: str = texts.COLUMN
    separator: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A model ready to read its texts.

    Attributes:
        network: the causal language model, frozen, in eval mode.
        sequences: the texts as tokens, at least one.
    """

    network: Any
    sequences: tuple[TokenSequence, ...]


def prepare(model: Model, data: Data, reading: Reading, *, device: str, trust_remote_code: bool, say: Say) -> Prepared:
    """Choose and tokenise the texts, then load the model.

    Args:
        model: the model.
        data: where the texts are.
        reading: how many of them, how long, by which seed, and in which dtype.
        device: ``auto``, ``cpu`` or ``cuda``.
        trust_remote_code: whether code that comes with the model may run.
        say: called with each sentence for the user.

    Raises:
        UntaxError: something is not as it must be, or model, tokenizer and texts do not belong together.
    """
    # Reading forks a process: before torch is there.
    say(f"Reading {data.path} ...")
    chosen = _choose(data, reading, say)
    say(f"Loading {model.name} ...")
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    tokenised = _tokenised(chosen, tokenizer, reading.sequence_len, data.path, say)
    network = load_network(model, dtype=reading.dtype, device=place(device), trust_remote_code=trust_remote_code)
    _check(network, tokenised, reading.sequence_len, model.name)
    return Prepared(network, tokenised.sequences)


def identities(model: Model, data: Data, sequences: tuple[TokenSequence, ...]) -> dict[str, str]:
    """What a statistic was made from, as digests."""
    return {
        **model.identity(),
        "data": digest_file(data.path),
        "token_ids": digest_json([[list(one.ids), one.start] for one in sequences]),
    }


def _choose(data: Data, reading: Reading, say: Say) -> list[texts.Text]:
    file = texts.TextFile(data.path, data.column, data.separator, data.prompt)
    every = file.texts(reading.sequence_len)
    chosen, count = texts.choose(every, samples=reading.samples, seed=reading.seed)
    if not count:
        raise UntaxError("There is no text in the data: all are empty.", where=data.path, fix="Check the file.")
    if count < reading.samples:
        say(f"Warning: there are only {count} texts for {reading.samples} samples, and no more are used.")
    return chosen


def _tokenised(chosen: list[texts.Text], tokenizer: Any, length: int, path: Path, say: Say) -> Tokenised:
    found = tokenise(chosen, tokenizer, length=length)
    if not found.sequences:
        raise UntaxError(
            f"None of {len(chosen)} texts has a token to score within {length} tokens.",
            where=path,
            fix="Give longer texts, or a larger --sequence-len if prompts take all the room.",
        )
    if found.left_out:
        say(f"Warning: {found.left_out} of {len(chosen)} texts have no token to score and are left out.")
    if found.cut:
        say(f"{found.cut} of {len(found.sequences)} texts are cut to {length} tokens.")
    return found


def _check(network: Any, tokenised: Tokenised, length: int, name: str) -> None:
    check_vocabulary(tokenised.sequences, network.get_input_embeddings().weight.shape[0], where=name)
    context = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if context and length > context and max(len(one.ids) for one in tokenised.sequences) > context:
        raise UntaxError(
            f"The model's context is {context} tokens, and some texts have more.",
            where=name,
            fix=f"Use --sequence-len {context}.",
        )
