"""How far a node at work is: what its command says in a file, or the last progress bar in its log."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from untax.recipes.graph import Node
from untax.run.workers import progress_path

LOG_BYTES = 16_384
BAR_BYTES = 4_096
# A bar of tqdm: `` 77%|███▋ | 10/13 [00:02<00:01,  3.99it/s]``; what is left is ``?`` at first.
BAR = re.compile(r"\d+%\|[^|\r\n]*\|\s*(\d+)/(\d+) \[[\d:]+<(\?|[\d:]+)")


@dataclass(frozen=True)
class Progress:
    """How far a node is.

    Attributes:
        step: optimizer steps done, or whatever else its progress bar counts.
        steps: of how many.
        loss: the training loss that was logged last.
        tokens: trained on since the training's beginning, before it was resumed too, by all ranks.
        tokens_per_second: at present, of all ranks.
        seconds_left: by the rate of steps since this process began to train; None before its first step.
        age: seconds since this was written; 0 if it seems to come from the future.
    """

    step: int
    steps: int
    loss: float | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    age: float = 0.0


def of_node(node: Node, folder: Path, log: Path) -> Progress | None:
    """How far a node is, or None while it does not say.

    A training speaks for itself: the bars in its log before its first step are of tokenising and loading.
    """
    return read(progress_path(folder, node), None if node.kind == "train" else log)


def read(path: Path, log: Path | None = None) -> Progress | None:
    """What a training wrote about itself, or else the last progress bar in a log; None when neither makes sense."""
    said = _said(path)
    return last_bar(log) if said is None and log is not None else said


def _said(path: Path) -> Progress | None:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    step, steps = _count(said.get("step")), _count(said.get("steps"))
    if step is None or steps is None:
        return None
    return Progress(
        step,
        steps,
        loss=_number(said.get("loss")),
        tokens=_count(said.get("tokens")),
        tokens_per_second=_number(said.get("tokens_per_second")),
        seconds_left=_seconds_left(said, step, steps),
        age=max(0.0, time.time() - (_number(said.get("time")) or math.inf)),
    )


def last_bar(log: Path) -> Progress | None:
    """The last progress bar in a log."""
    found = BAR.findall(end_of(log, BAR_BYTES))
    if not found:
        return None
    step, steps, left = found[-1]
    try:
        age = max(0.0, time.time() - log.stat().st_mtime)
    except OSError:
        age = 0.0
    return Progress(int(step), int(steps), seconds_left=_clock(left), age=age)


def log_lines(log: Path) -> list[str]:
    """The log's last lines; of a progress bar only its last state."""
    lines = (line.rstrip().rsplit("\r", 1)[-1].rstrip() for line in end_of(log, LOG_BYTES).split("\n"))
    return [line for line in lines if line]


def _seconds_left(said: dict[str, Any], step: int, steps: int) -> float | None:
    """By the training's own stopwatch, which a wall clock that jumps does not disturb."""
    first, seconds = _count(said.get("first_step")), _number(said.get("seconds"))
    if step >= steps:
        return 0.0
    if first is None or seconds is None or seconds <= 0 or step <= first:
        return None
    return (steps - step) * seconds / (step - first)


def _clock(text: str) -> float | None:
    """The seconds of ``1:02:03``, ``02:03``; None of ``?``."""
    if not re.fullmatch(r"\d+(:\d+)*", text):
        return None
    seconds = 0
    for part in text.split(":"):
        seconds = 60 * seconds + int(part)
    return float(seconds)


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number >= 0 else None


def end_of(file: Path, size: int) -> str:
    """The last bytes of a log as text; nothing of one that cannot be read."""
    try:
        with file.open("rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - size))
            return handle.read().decode("utf-8", "replace")
    except OSError:
        return ""
