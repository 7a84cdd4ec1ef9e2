"""What a run shows: a line when something starts or ends, and meanwhile how far it is."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO, cast

from rich.console import Console

from untax.recipes.graph import Node
from untax.run.board import Board
from untax.run.durations import exactly, roughly
from untax.run.live import LiveView
from untax.run.output import PatientOutput
from untax.run.progress import Progress, log_lines, read
from untax.run.workers import Ended, Running, log_path, progress_path

LOG_LINES = 15
LINE_SECONDS = 60.0
LINE_VARIABLE = "UNTAX_LINE_SECONDS"
"""Where there is no terminal, a node that runs long has a line of its own at most this often."""


class Screen:
    """Progress on the terminal or, where there is none, as plain lines.

    Attributes:
        console: where everything goes.
        board: where every node stands.
    """

    def __init__(self, nodes: Sequence[Node], folder: Path):
        self.console = Console(file=cast(TextIO, PatientOutput(sys.stdout)), highlight=False, soft_wrap=True)
        self.folder = folder
        self.board = Board(nodes, folder)
        self._live = LiveView(self.console, self.board) if self.console.is_terminal else None
        self._line_seconds = _line_seconds()
        self._lines: dict[str, float] = {}

    def __enter__(self) -> Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def kept(self, node: Node) -> None:
        """A node that was finished before."""
        self.board.put(node, "done")
        self._line(f"{node.name}: finished before")

    def started(self, node: Node, reason: str) -> None:
        """A node that starts now."""
        self.board.put(node, "running")
        self._lines[node.name] = time.monotonic()
        self._line(f"{node.name}: {shlex.join(node.command)}   ({reason})")

    def finished(self, node: Node, ended: Ended, note: str = "") -> None:
        """A node that ended well, with what its command said of itself last."""
        self.board.put(node, "done")
        self.board.pace.add(node, ended.usage.wall_seconds)
        progress = read(progress_path(self.folder, node)) if node.kind == "train" else None
        said = [f"done in {exactly(ended.usage.wall_seconds)}", *_numbers(progress), note]
        self._line(f"{node.name}: {', '.join(part for part in said if part)}")

    def failed(self, node: Node, ended: Ended | None, reason: str) -> None:
        """A node that failed: why, the end of its log, and how to repeat it; ``ended`` is None if it never started."""
        self.board.put(node, "failed")
        after = f" after {exactly(ended.usage.wall_seconds)}" if ended else ""
        self._line(f"{node.name}: FAILED{after}: {reason}", style="bold red")
        if ended:
            for line in log_lines(log_path(self.folder, node))[-LOG_LINES:]:
                self.say(f"      | {line}")
        self.say(f"      again: cd {shlex.quote(str(self.folder))} && {shlex.join(node.command)}")

    def blocked(self, node: Node, reason: str) -> None:
        """A node that is out of reach, since what it needs failed."""
        self.board.put(node, "blocked")
        self._line(f"{node.name}: {reason}", style="red")

    def refresh(self, running: Sequence[Running]) -> None:
        """How far the nodes at work are; called as often as one likes."""
        if self._live:
            self._live.refresh(running)
            return
        now = time.monotonic()
        for one in running:
            if now - self._lines.setdefault(one.node.name, now) >= self._line_seconds:
                self._lines[one.node.name] = now
                self._line(f"{one.node.name}: {', '.join(_how_far(one, self.board.progress(one)))}")

    def say(self, text: str) -> None:
        """A line of its own."""
        self._print(text)

    def _line(self, text: str, *, style: str = "") -> None:
        clock = time.strftime("%H:%M:%S" if self._live else "%Y-%m-%d %H:%M:%S")
        self._print(f"{clock} [{self.board.settled}] {text}", style)

    def _print(self, text: str, style: str = "") -> None:
        self.console.print(text, markup=False, style=style or None)
        self.console.file.flush()


def _how_far(running: Running, progress: Progress | None) -> list[str]:
    """``step 120/800``, ``loss 2.31``, ``1,530 tokens/s``, ``12 min left``; without progress how long it has been."""
    if not running.seconds:
        return ["waits for a place"]
    if progress is None:
        return [f"at work for {exactly(running.seconds)}"]
    left = [] if progress.seconds_left is None else [f"{roughly(progress.seconds_left)} left"]
    return [f"step {progress.step}/{progress.steps}", *_numbers(progress), *left]


def _numbers(progress: Progress | None) -> list[str]:
    if progress is None:
        return []
    loss = [] if progress.loss is None else [f"loss {progress.loss:.3g}"]
    rate = [] if progress.tokens_per_second is None else [f"{progress.tokens_per_second:,.0f} tokens/s"]
    return loss + rate


def _line_seconds() -> float:
    try:
        return float(os.environ.get(LINE_VARIABLE, LINE_SECONDS))
    except ValueError:
        return LINE_SECONDS
