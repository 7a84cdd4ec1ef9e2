"""What a run shows, on a terminal and where there is none."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from untax.recipes.graph import Node
from untax.run import live
from untax.run.board import Board
from untax.run.live import LiveView
from untax.run.screen import Screen
from untax.run.time_left import TimeLeft
from untax.run.workers import Ended, Usage, log_path, progress_path

DISPERSE = Node("disperse", "disperse", ("untax", "disperse"), ())
TRAIN = Node("cluster-0", "train", ("axolotl", "train", "recipes/cluster-0.yaml"), (), needs=("disperse",))
OTHER = Node("cluster-1", "train", ("axolotl", "train", "recipes/cluster-1.yaml"), (), needs=("disperse",))
MERGE = Node("dtm", "merge", ("untax", "merge", "a b.yaml"), (), needs=("cluster-0", "cluster-1"))
NODES = (DISPERSE, TRAIN, OTHER, MERGE)


@dataclass
class AtWork:
    """A node that does not really run."""

    node: Node
    log: Path
    seconds: float = 130.0
    where: str = ""
    gpus: tuple[str, ...] = ()

    def poll(self) -> Ended | None:
        return None


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("UNTAX_LINE_SECONDS", "0")
    screen = Screen(NODES, tmp_path)
    screen.console.file = io.StringIO()
    return screen


def said(screen: Screen) -> list[str]:
    """The lines without their clocks, all of which have one if they are events."""
    assert isinstance(screen.console.file, io.StringIO)
    lines = screen.console.file.getvalue().splitlines()
    return [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line) for line in lines]


def training(folder: Path, node: Node = TRAIN, **changes: Any) -> AtWork:
    path = progress_path(folder, node)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"step": 120, "steps": 800, "first_step": 0, "seconds": 127.0, "loss": 2.3123, "tokens_per_second": 1530.4}
    path.write_text(json.dumps({**known, "time": time.time(), **changes}))
    return AtWork(node, log_path(folder, node))


def test_plain_lines_of_a_run(plain: Screen, tmp_path: Path) -> None:
    with plain:
        plain.kept(DISPERSE)
        plain.started(TRAIN, "never run")
        plain.refresh([training(tmp_path)])
        training(tmp_path, step=800, loss=1.5, tokens_per_second=2000)
        plain.finished(TRAIN, Ended(0, Usage(905.0)), "resumed at step 400")
        plain.started(MERGE, "its YAML changed")
        plain.finished(MERGE, Ended(0, Usage(1.2)))
        plain.say("[bold]no markup[/bold]")
    assert said(plain) == [
        "[1/4] disperse: finished before",
        "[1/4] cluster-0: axolotl train recipes/cluster-0.yaml   (never run)",
        "[1/4] cluster-0: step 120/800, loss 2.31, 1,530 tokens/s, 12 min left",
        "[2/4] cluster-0: done in 15 min 05 s, loss 1.5, 2,000 tokens/s, resumed at step 400",
        "[2/4] dtm: untax merge 'a b.yaml'   (its YAML changed)",
        "[3/4] dtm: done in 1 s",
        "[bold]no markup[/bold]",
    ]


def test_a_failure_is_shown_with_its_log_and_its_command(plain: Screen, tmp_path: Path) -> None:
    log = log_path(tmp_path, TRAIN)
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"line {i}\n" for i in range(40)) + "Error: [red]oops[/red]\n")
    plain.started(TRAIN, "never run")
    plain.failed(TRAIN, Ended(1, Usage(75.0)), "ended with exit code 1")
    plain.blocked(MERGE, "not run, since it needs cluster-0")
    plain.failed(OTHER, None, "The command 'axolotl' is not installed.")
    lines = said(plain)
    assert lines[1] == "[1/4] cluster-0: FAILED after 1 min 15 s: ended with exit code 1"
    assert lines[2:17] == [f"      | line {i}" for i in range(26, 40)] + ["      | Error: [red]oops[/red]"]
    assert lines[17] == f"      again: cd {tmp_path} && axolotl train recipes/cluster-0.yaml"
    assert lines[18] == "[2/4] dtm: not run, since it needs cluster-0"
    assert lines[19] == "[3/4] cluster-1: FAILED: The command 'axolotl' is not installed."
    assert lines[20] == f"      again: cd {tmp_path} && axolotl train recipes/cluster-1.yaml"
    assert len(lines) == 21


def test_lines_of_long_nodes_are_far_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNTAX_LINE_SECONDS", "60")
    clock = [1000.0]
    monkeypatch.setattr("untax.run.screen.time.monotonic", lambda: clock[0])
    screen = Screen(NODES, tmp_path)
    screen.console.file = io.StringIO()
    screen.started(TRAIN, "never run")
    for _ in range(1800):  # three minutes, ten times a second
        clock[0] += 0.1
        screen.refresh([AtWork(TRAIN, tmp_path / "log"), AtWork(MERGE, tmp_path / "log", seconds=0.0)])
    lines = said(screen)[1:]
    assert lines.count("[0/4] cluster-0: at work for 2 min 10 s") in (2, 3)
    assert lines.count("[0/4] dtm: waits for a place") in (2, 3)
    assert len(lines) <= 6


def frame(
    folder: Path, rows: int, width: int, height: int, *, name: str = "cluster-0", where: str = "a-machine-with-a-name"
) -> list[str]:
    board = Board(NODES, folder)
    node = Node(name, "train", (), ())
    at_work = training(folder, node)
    at_work.gpus, at_work.where = ("0", "1"), where
    row = live.cells(at_work, board.progress(at_work))
    line = live.bottom(board, 432, TimeLeft(600.0, complete=False))
    return [text.plain for text in live.frame(board, [row] * rows, line, width=width, height=height)]


@pytest.mark.parametrize("width", [20, 40, 60, 79, 200])
@pytest.mark.parametrize("height", [1, 2, 3, 5, 13, 14, 23, 60])
@pytest.mark.parametrize("rows", [0, 1, 4, 30])
def test_the_view_fits_whatever_the_terminal(tmp_path: Path, rows: int, width: int, height: int) -> None:
    for name in ("t", "cluster-0", "a-training-with-quite-a-long-name-in-the-recipe", "训练" * 20):
        lines = frame(tmp_path, rows, width, height, name=name)
        assert 1 <= len(lines) <= height
        assert all(cell_len(line) <= width for line in lines)
        assert lines[-1][:6] == "[0/4] "


def test_all_of_a_row_fits_80_columns(tmp_path: Path) -> None:
    head, row = frame(tmp_path, 1, 79, 24, where="")[-3:-1]
    assert head.split() == ["node", "where", "step", "loss", "tokens/s", "so", "far", "left"]
    for part in ("cluster-0", "GPU 0,1", "━──", "120/800", "2.31", "1,530", "2 min 10 s", "12 min"):
        assert part in row
    assert frame(tmp_path, 1, 79, 24)[-1] == "[0/4] 7 min 12 s so far, at least 10 min left"


def test_rows_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    lines = frame(tmp_path, 30, 79, 10)
    shown = sum(line.startswith("cluster-0") for line in lines)
    assert shown == 7
    assert f"and {30 - shown} more" in lines


def test_stages_count_every_node_once(tmp_path: Path) -> None:
    board = Board(NODES, tmp_path)
    board.put(DISPERSE, "done")
    board.put(TRAIN, "running")
    board.put(OTHER, "failed")
    board.put(MERGE, "blocked")
    lines = [text.plain for text in live.frame(board, [], "end", width=79, height=23)]
    assert lines == [
        "disperse     1/1 done",
        "train        0/2 done  1 running  1 failed",
        "merge        0/1 done  1 blocked",
        "end",
    ]


def test_the_run_is_estimated_from_nodes_of_the_same_kind(tmp_path: Path) -> None:
    board = Board(NODES, tmp_path)
    board.put(DISPERSE, "done")
    board.put(TRAIN, "running")
    at_work = training(tmp_path)  # 680 of 800 steps are left, at 127 s for 120
    left = 680 * 127 / 120
    known = board.time_left([at_work], {"cluster-0": board.progress(at_work)})
    assert known.seconds == pytest.approx(left + (at_work.seconds + left)), "one place: the other one comes after it"
    assert not known.complete, "of merges nothing is known"
    assert board.time_left([AtWork(TRAIN, tmp_path)], {"cluster-0": None}).seconds is None
    board.pace.add(OTHER, 200.0)
    unsaid = board.time_left([AtWork(TRAIN, tmp_path)], {"cluster-0": None})
    assert unsaid.seconds == pytest.approx(200.0 - 130.0 + 200.0), "as long as the one that is done took"


def at_bottom(output: str, height: int = 40) -> tuple[list[str], bool]:
    """The lines of a terminal after an output, and whether its cursor can be seen: the few codes that rich sends."""
    lines, row, column, visible = [""], 0, 0, True
    for code, number, text in re.findall(r"\x1b\[\??(\d*)([A-Za-z])|([^\x1b]+)", output):
        if number == "A":
            row = max(0, row - int(code or 1))
        elif number == "K":
            lines[row] = ""
        elif number in "hl" and code == "25":
            visible = number == "h"
        for char in text:
            if char == "\n":
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            elif char == "\r":
                column = 0
            else:
                lines[row] = lines[row][:column].ljust(column) + char + lines[row][column + 1 :]
                column += 1
    return [line.rstrip() for line in lines], visible


def draw(console: Console, board: Board, running: Sequence[AtWork], *, end: bool) -> tuple[list[str], bool]:
    view = LiveView(console, board)
    view.start()
    try:
        view.refresh(running)
        console.print("a line " + "x" * 100, markup=False)
        view._drawn = float("-inf")
        view.refresh(running)
        view._drawn = float("-inf")
        if end:
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        view.stop()
    assert isinstance(console.file, io.StringIO)
    return at_bottom(console.file.getvalue())


def test_the_view_is_drawn_in_place_and_leaves_nothing(tmp_path: Path) -> None:
    def terminal() -> Console:
        return Console(
            force_terminal=True,
            width=80,
            height=24,
            file=io.StringIO(),
            highlight=False,
            soft_wrap=True,
            color_system=None,
        )

    board = Board(NODES, tmp_path)
    running = [training(tmp_path)]
    lines, visible = draw(terminal(), board, running, end=False)
    assert not visible
    assert lines[0] == "a line " + "x" * 100
    assert [line.split()[0] for line in lines[1:]] == ["disperse", "train", "merge", "node", "cluster-0", "[0/4]"]
    lines, visible = draw(terminal(), board, running, end=True)
    assert visible, "Ctrl-C gives the cursor back"
    assert [line for line in lines if line] == ["a line " + "x" * 100]


def test_a_view_is_not_drawn_more_than_twice_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("untax.run.live.time.monotonic", lambda: clock[0])
    drawn: list[float] = []
    view = LiveView(Console(force_terminal=True, width=80, height=24, file=io.StringIO()), Board(NODES, tmp_path))
    monkeypatch.setattr(view._live, "update", lambda *_, **__: drawn.append(clock[0]))
    for step in range(100):
        clock[0] = step / 10
        view.refresh([])
    assert 15 < len(drawn) <= 21
