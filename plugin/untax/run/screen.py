"""What a run shows: a line when something starts or ends, and on a terminal a live line of what is running."""

from __future__ import annotations

import re
import shlex
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from untax.recipes.graph import Node
from untax.run.process import Running

REFRESH_SECONDS = 0.5
LOG_TAIL_BYTES = 4096
LOG_LINES = 15
PROGRESS = re.compile(r"(\d+)%\|[^|]*\|\s*(\d+)/(\d+) \[")


class Screen:
    """Progress on the terminal or, where there is none, as plain lines."""

    def __init__(self, total: int, folder: Path):
        self.console = Console(highlight=False, soft_wrap=True)
        self.total, self.folder = total, folder
        self.settled = 0
        self.start = time.monotonic()
        self.live = Live(console=self.console, transient=True, auto_refresh=False) if self.console.is_terminal else None
        self.shown = 0.0

    def __enter__(self) -> Screen:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def kept(self, node: Node) -> None:
        """A node that was finished before."""
        self.settled += 1
        self._line(f"{node.name}: finished before")

    def started(self, node: Node, reason: str) -> None:
        """A node that starts now."""
        self._line(f"{node.name}: {shlex.join(node.command)}   ({reason})", step=False)

    def finished(self, running: Running) -> None:
        """A node that ended well."""
        self.settled += 1
        self._line(f"{running.node.name}: done in {running.seconds:.0f} s")

    def failed(self, running: Running, reason: str) -> None:
        """A node that failed: the end of its log and how to repeat it."""
        self.settled += 1
        self._line(f"{running.node.name}: FAILED after {running.seconds:.0f} s: {reason}")
        for line in log_lines(running.log)[-LOG_LINES:]:
            self.say(f"      | {line}")
        self.say(f"      again: cd {shlex.quote(str(self.folder))} && {shlex.join(running.node.command)}")

    def refresh(self, running: list[Running]) -> None:
        """The live line: what is running and how far it is."""
        if self.live and time.monotonic() - self.shown > REFRESH_SECONDS:
            self.shown = time.monotonic()
            parts = [f"{one.node.name} {progress(one.log)}{one.seconds:.0f} s" for one in running]
            self.live.update(
                Text(f"[{self.settled}/{self.total}] {'   '.join(parts)}", overflow="ellipsis", no_wrap=True),
                refresh=True,
            )

    def say(self, text: str) -> None:
        """A line of its own."""
        self.console.print(text, markup=False)

    def _line(self, text: str, *, step: bool = True) -> None:
        clock = f"{time.monotonic() - self.start:5.0f} s"
        mark = f"[{self.settled}/{self.total}]" if step else " " * len(f"[{self.settled}/{self.total}]")
        self.say(f"{clock} {mark} {text}")
        sys.stdout.flush()


def log_lines(log: Path) -> list[str]:
    """The log's last lines; of a progress bar only its last state."""
    try:
        with log.open("rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - 4 * LOG_TAIL_BYTES))
            text = handle.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rsplit("\r", 1)[-1].rstrip() for line in text.split("\n") if line.strip()]


def progress(log: Path) -> str:
    """How far the log's last progress bar is, as ``12/94 ``, or nothing."""
    try:
        with log.open("rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - LOG_TAIL_BYTES))
            found = PROGRESS.findall(handle.read().decode("utf-8", "replace"))
    except OSError:
        return ""
    return f"{found[-1][1]}/{found[-1][2]} " if found else ""
