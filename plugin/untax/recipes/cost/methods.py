"""How a kind of training uses its rows: answers to a row, and passes beyond one forward and one backward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from untax.errors import UntaxError


@dataclass(frozen=True)
class Method:
    """A kind of training, as TRL 1.9 computes it.

    Attributes:
        answers: sequences that a row becomes: a pair is two.
        reference: whether a reference model scores them too.
        more_forwards: passes without a backward, in passes over a row's sequences.
        logit_bytes: what the loss holds at its peak of each score of each token: scores, logarithms and derivatives in
            full precision, measured in Axolotl's trainers.
    """

    answers: int = 1
    reference: bool = False
    more_forwards: int = 0
    logit_bytes: int = 12


SFT = Method()
METHODS = {
    "dpo": Method(2, reference=True, more_forwards=1, logit_bytes=13),
    "ipo": Method(2, reference=True, more_forwards=1, logit_bytes=13),
    "orpo": Method(2, logit_bytes=14),
    "simpo": Method(2),
    # The answer by the reference; and another row's answer, for the estimate of KL, by both.
    "kto": Method(1, reference=True, more_forwards=3, logit_bytes=15),
}


def method(keys: Mapping[str, Any]) -> Method:
    """The kind of training that the keys ask for.

    Raises:
        UntaxError: nothing is known of this ``rl``.
    """
    name = keys.get("rl")
    if not name:
        return SFT
    if str(name) not in METHODS:
        raise UntaxError(
            f"Memory and hours of rl: {name} are not estimated, only of {', '.join(METHODS)} and SFT.", where="key rl"
        )
    return METHODS[str(name)]
