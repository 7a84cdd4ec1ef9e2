"""What a node at work says of itself, and what is made of it."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untax.recipes.graph import Node
from untax.run.progress import Progress, last_bar, log_lines, of_node, read
from untax.run.workers import log_path, progress_path

SAID: dict[str, Any] = {
    "step": 120,
    "steps": 800,
    "first_step": 20,
    "seconds": 50.0,
    "epoch": 0.3,
    "loss": 2.31,
    "tokens": 123456,
    "tokens_per_second": 1530.4,
}


def write(path: Path, **changes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**SAID, "started": time.time() - 50, "time": time.time(), **changes}))
    return path


def test_a_training_speaks_for_itself(tmp_path: Path):
    said = read(write(tmp_path / "p.json", time=time.time() - 7))
    assert said is not None
    assert (said.step, said.steps, said.loss, said.tokens, said.tokens_per_second) == (120, 800, 2.31, 123456, 1530.4)
    assert said.seconds_left == 680 * 50 / 100, "100 steps in 50 s since this process began"
    assert 7 <= said.age < 60


@pytest.mark.parametrize("wrong", [-1e6, 1e6])
def test_a_clock_that_jumps_moves_no_estimate(tmp_path: Path, wrong: float):
    said = read(write(tmp_path / "p.json", time=time.time() + wrong, started=0))
    assert said is not None
    assert said.seconds_left == 340
    assert said.age == 0 if wrong > 0 else said.age > 1e5


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"step": 20}, None),
        ({"seconds": 0}, None),
        ({"seconds": None}, None),
        ({"first_step": "x"}, None),
        ({"step": 800}, 0.0),
        ({"step": 801}, 0.0),
    ],
)
def test_time_left_is_a_guess_only_after_a_step(tmp_path: Path, changes: dict[str, Any], left: float | None):
    said = read(write(tmp_path / "p.json", **changes))
    assert said is not None
    assert said.seconds_left == left


def test_half_a_file_is_no_progress(tmp_path: Path):
    path = write(tmp_path / "p.json")
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert read(path) is None
    for text in ("[]", "3", "null", "{}", '{"step": "many", "steps": 3}', '{"step": NaN, "steps": 3}', "[" * 100_000):
        path.write_text(text)
        assert read(path) is None
    path.write_bytes(b"\xff\xfe\x00")
    assert read(path) is None
    assert read(tmp_path / "missing") is None
    assert read(tmp_path) is None


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=2)
)


@given(st.dictionaries(st.sampled_from([*SAID, "time", "started"]), ANYTHING))
def test_whatever_the_file_says_the_numbers_are_numbers(tmp_path_factory: pytest.TempPathFactory, said: dict[str, Any]):
    path = tmp_path_factory.getbasetemp() / "p.json"
    path.write_text(json.dumps({**SAID, **said}))
    progress = read(path)
    if progress is None:
        return
    for number in (progress.loss, progress.tokens, progress.tokens_per_second, progress.seconds_left, progress.age):
        assert number is None or math.isfinite(number)
    assert min(progress.step, progress.steps, progress.age, progress.seconds_left or 0) >= 0


def test_the_last_bar_of_a_log(tmp_path: Path):
    log = tmp_path / "log"
    log.write_text("  0%|          | 0/13 [00:00<?, ?it/s]\r 77%|███████▋  | 10/13 [1:00:02<1:02:03,  3.99it/s]")
    os.utime(log, (time.time() + 100, time.time() + 100))
    assert last_bar(log) == Progress(10, 13, seconds_left=3723.0, age=0.0)
    log.write_text("  0%|          | 0/13 [00:00<?, ?it/s]")
    found = last_bar(log)
    assert found is not None
    assert (found.step, found.steps, found.seconds_left) == (0, 13, None)
    log.write_text("loading")
    assert last_bar(log) is None
    assert last_bar(tmp_path / "missing") is None


def test_a_training_is_not_as_far_as_its_data_are_tokenised(tmp_path: Path):
    """Its log begins with bars of other things; that of a merge has no other progress."""
    train, merge = (Node(kind, kind, (kind,), ()) for kind in ("train", "merge"))
    for node in (train, merge):
        log = log_path(tmp_path, node)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("100%|██████████| 24/24 [00:02<00:00, 9it/s]\n")
    assert of_node(train, tmp_path, log_path(tmp_path, train)) is None
    bar = of_node(merge, tmp_path, log_path(tmp_path, merge))
    assert bar is not None
    assert (bar.step, bar.steps) == (24, 24)
    write(progress_path(tmp_path, train))
    said = of_node(train, tmp_path, log_path(tmp_path, train))
    assert said is not None
    assert said.step == 120


def test_of_a_bar_only_its_last_state_is_shown(tmp_path: Path):
    log = tmp_path / "log"
    log.write_text("start\n  0%|  | 0/2\r 50%|  | 1/2\r100%|  | 2/2\n\nError: the reason\r\n")
    assert log_lines(log) == ["start", "100%|  | 2/2", "Error: the reason"]
    assert log_lines(tmp_path / "missing") == []
