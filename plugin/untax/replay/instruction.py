"""How much instruction data a training reads, counted on its rows as Axolotl loads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from untax.errors import UntaxError
from untax.replay.request import Like

if TYPE_CHECKING:
    from untax.data.corpus import Corpus


def read_instruction(like: Like) -> Corpus:
    """The instruction rows, read in a process of its own, which is best started before torch is here.

    Raises:
        UntaxError: a dataset cannot be read, or has no rows.
    """
    from untax.data.corpus import check_entries
    from untax.data.parallel import apart

    check_entries(list(like.entries))
    cfg = {"datasets": list(like.entries), "seed": like.seed, "hf_use_auth_token": like.token}
    return apart(_read, cfg)


def _read(cfg: dict[str, Any]) -> Corpus:
    from untax.data.corpus import read_corpus

    return read_corpus(cfg)


def count_rows(corpus: Corpus, *, first_turn: bool) -> int:
    """How many rows are trained on: all, or those with a complete first turn, and those of plain text.

    Raises:
        UntaxError: there are none.
    """
    from untax.data.first_turn import first_turns, has_turns

    count = sum(
        sum(len(first_turns(batch)) for batch in source.batches())
        if first_turn and has_turns(source.entry)
        else len(source.rows)
        for source in corpus.sources
    )
    if not count:
        raise UntaxError(
            "No row of the instruction data has a complete first turn.",
            where="key disperse_first_turn",
            fix="Leave the key out, or correct the entries under datasets.",
        )
    return count


def count_tokens(corpus: Corpus, tokens: Callable[[str], int], *, first_turn: bool, sequence_len: int) -> int:
    """How many tokens the rows have: instruction and response of each as one text, at most ``sequence_len`` of a row.

    The words of prompt templates are not among them.

    Args:
        corpus: the rows.
        tokens: counts those of a text.
        first_turn: whether rows are cut to their first turns; those without one have no tokens.
        sequence_len: the most of a row.

    Raises:
        UntaxError: the rows have no instruction and no response that untax can read.
    """
    from untax.data.text import CorpusTexts, check_columns

    check_columns(corpus, text="both", first_turn=first_turn)
    texts = CorpusTexts(corpus, text="both", first_turn=first_turn)
    return sum(min(tokens(text), sequence_len) for text in texts if text)
