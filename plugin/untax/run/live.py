"""The live view below the scrolled lines of a terminal: the graph by stages, and a row for each node at work."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.live import Live
from rich.text import Text

from untax.run.board import Board, State
from untax.run.durations import exactly, roughly
from untax.run.progress import Progress
from untax.run.time_left import TimeLeft
from untax.run.workers import Running

REFRESH_SECONDS = 0.5
ESTIMATE_SECONDS = 3.0
KINDS = ("disperse", "replay", "fisher", "train", "merge", "score")
BAR_CELLS = 10
NAME_LEAST, WHERE_MOST = 10, 14
STAGES_FROM_HEIGHT = 14
"""Lines of a terminal below which the stages are left out."""
COLUMNS = ("node", "where", "", "step", "loss", "tokens/s", "so far", "left")
# What is left out first of a terminal that is too narrow.
SPARE = ("", "so far", "where", "loss", "tokens/s", "step")
LEFT_ALIGNED = ("node", "where", "")
STYLES: Mapping[State, str] = {"running": "cyan", "failed": "bold red", "blocked": "red"}


class LiveView:
    """Drawn anew at most twice a second, in place."""

    def __init__(self, console: Console, board: Board):
        self.console, self.board = console, board
        self._live = Live(console=console, transient=True, auto_refresh=False, vertical_overflow="crop")
        self._start = time.monotonic()
        self._drawn = self._estimated = float("-inf")
        self._left = TimeLeft(None, complete=False)

    def start(self) -> None:
        """Take the bottom of the terminal, and hide the cursor."""
        self._live.start()

    def stop(self) -> None:
        """Wipe the view, and show the cursor again."""
        self._live.stop()

    def refresh(self, running: Sequence[Running]) -> None:
        """Draw, if it is time to."""
        now = time.monotonic()
        if now - self._drawn < REFRESH_SECONDS:
            return
        self._drawn = now
        progress = {one.node.name: self.board.progress(one) for one in running}
        if now - self._estimated >= ESTIMATE_SECONDS:
            self._estimated, self._left = now, self.board.time_left(running, progress)
        seconds_since = now - self._estimated
        left = self._left.seconds
        if left is not None:
            left = max(0.0, left - seconds_since)
        width, height = self.console.size
        lines = frame(
            self.board,
            [cells(one, progress[one.node.name]) for one in running],
            bottom(self.board, now - self._start, TimeLeft(left, self._left.complete)),
            width=width - 1,
            height=height - 1,
            ascii_only=self.console.options.ascii_only,
        )
        self._live.update(Text("\n").join(lines), refresh=True)


def frame(
    board: Board,
    rows: Sequence[Mapping[str, str]],
    bottom_line: str,
    *,
    width: int,
    height: int,
    ascii_only: bool = False,
) -> list[Text]:
    """The view's lines, at most ``height`` of at most ``width`` cells."""
    top = [_stage(kind, counts) for kind, counts in _in_order(board)] if height >= STAGES_FROM_HEIGHT else []
    room = max(0, height - len(top) - 2)
    shown, hidden = (rows, 0) if len(rows) <= room else (rows[: max(0, room - 1)], len(rows) - max(0, room - 1))
    lines = [*top, *table(shown, width, ascii_only=ascii_only)]
    if hidden and room:
        lines.append(Text(f"and {hidden} more", style="dim"))
    lines.append(Text(bottom_line, style="bold"))
    for line in lines:
        line.truncate(width, overflow="crop" if ascii_only else "ellipsis")
    return lines[-max(1, height) :]


def table(rows: Sequence[Mapping[str, str]], width: int, *, ascii_only: bool = False) -> list[Text]:
    """A head and a line for each row, without those columns for which there is no room or nothing to say."""
    if not rows:
        return []
    used = [column for column in COLUMNS if any(row.get(column) for row in rows)]
    widths = {column: max(cell_len(column), *(cell_len(row.get(column, "")) for row in rows)) for column in used}
    if "" in widths:
        widths[""] = BAR_CELLS
    _squeeze(widths, width)
    lines = [Text("  ".join(_aligned(column, column, size) for column, size in widths.items()), style="dim")]
    for row in rows:
        parts = {column: _aligned(column, row.get(column, ""), size) for column, size in widths.items()}
        if "" in parts:
            parts[""] = _bar(row.get("", ""), ascii_only=ascii_only)
        lines.append(Text("  ".join(parts.values())))
    return lines


def cells(running: Running, progress: Progress | None) -> dict[str, str]:
    """A node's row by column; the bar's cell is the share that is done."""
    gpus = f"GPU {','.join(running.gpus)}" if running.gpus else ""
    row = {
        "node": running.node.name,
        "where": _cut(" ".join(part for part in (running.where, gpus) if part), WHERE_MOST),
        "so far": exactly(running.seconds) if running.seconds else "waits",
    }
    if progress is None:
        return row
    row["step"] = f"{progress.step}/{progress.steps}"
    row[""] = f"{min(1.0, progress.step / progress.steps) if progress.steps else 0:.4f}"
    if progress.loss is not None:
        row["loss"] = f"{progress.loss:.3g}"
    if progress.tokens_per_second is not None:
        row["tokens/s"] = f"{progress.tokens_per_second:,.0f}"
    row["left"] = "?" if progress.seconds_left is None else roughly(progress.seconds_left)
    return row


def bottom(board: Board, seconds: float, left: TimeLeft) -> str:
    """``[3/12] 5 min 12 s so far, 20 min left``."""
    known = "" if left.seconds is None else f"{'' if left.complete else 'at least '}{roughly(left.seconds)}"
    return f"[{board.settled}] {exactly(seconds)} so far, {known or '?'} left"


def _in_order(board: Board) -> list[tuple[str, Mapping[State, int]]]:
    stages = board.stages()
    return [(kind, stages[kind]) for kind in (*KINDS, *(stages.keys() - {*KINDS})) if kind in stages]


def _stage(kind: str, counts: Mapping[State, int]) -> Text:
    """``train     3/7 done  2 running  1 waiting``."""
    done = f"{counts.get('done', 0)}/{sum(counts.values())}"
    line = Text(f"{kind:<9}{done:>7} done")
    for state in ("running", "waiting", "failed", "blocked"):
        if counts.get(state):
            line.append(f"  {counts[state]} {state}", style=STYLES.get(state, ""))
    return line


def _squeeze(widths: dict[str, int], width: int) -> None:
    """Take from the names, then leave columns out, until all fits."""
    for column in ("node", *SPARE):
        excess = sum(widths.values()) + 2 * (len(widths) - 1) - width
        if excess <= 0:
            return
        if column == "node":
            widths["node"] = max(min(NAME_LEAST, widths["node"]), widths["node"] - excess)
        else:
            widths.pop(column, None)


def _aligned(column: str, text: str, size: int) -> str:
    if column in LEFT_ALIGNED:
        return set_cell_size(_cut(text, size), size)
    return " " * (size - cell_len(text)) + text


def _cut(text: str, size: int) -> str:
    return text if cell_len(text) <= size else set_cell_size(text, size - 1) + "~"


def _bar(share: str, *, ascii_only: bool) -> str:
    if not share:
        return " " * BAR_CELLS
    full = int(float(share) * BAR_CELLS)
    done, rest = ("#", "-") if ascii_only else ("━", "─")
    return done * full + rest * (BAR_CELLS - full)
