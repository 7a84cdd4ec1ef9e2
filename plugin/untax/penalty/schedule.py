"""How lambda changes over a training."""

from __future__ import annotations

import math
from typing import Any

WARMUP_SHARE = 0.1
"""Of the steps, where the learning rate has no warm-up of its own: that of the Zephyr recipe, which PAFT follows."""


def factor(trainer: Any, schedule: str) -> float:
    """What lambda is multiplied by in the optimizer step that is being taken.

    It follows from the step's number alone, so a resumed training goes on where it stopped.

    Args:
        trainer: with the number of finished optimizer steps in ``state.global_step``.
        schedule: ``constant``: 1; ``linear_warmup``: (step + 1) / W up to 1 over the W steps of the learning rate's
            warm-up, or over a tenth of all steps when it has none.
    """
    if schedule == "constant":
        return 1.0
    total = trainer.state.max_steps
    steps = trainer.args.get_warmup_steps(total) or math.ceil(WARMUP_SHARE * total)
    return float(min(1.0, (trainer.state.global_step + 1) / steps))
