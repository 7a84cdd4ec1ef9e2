"""The record of a run: only appended to, and read whatever was cut off."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from untax.run.events import EVENTS_NAME, Events, read_events
from untax.run.record import peaks, read_record


def test_every_run_has_an_id_and_every_event_a_time(tmp_path: Path):
    for _ in range(2):
        events = Events(tmp_path)
        events.write("run-started", nodes=1)
        events.write("run-ended", status="done")
    lines = [json.loads(line) for line in (tmp_path / EVENTS_NAME).read_text().splitlines()]
    assert [line["event"] for line in lines] == ["run-started", "run-ended"] * 2
    assert len({line["run"] for line in lines}) == 2
    assert all(line["time"].endswith("Z") for line in lines)


@given(cut=st.integers(1, 60), garbage=st.binary(max_size=20))
def test_a_cut_line_costs_that_line_alone(tmp_path_factory, cut: int, garbage: bytes):
    folder = tmp_path_factory.mktemp("run")
    Events(folder).write("first", number=1)
    Events(folder).write("second", number=2, text="x" * 80)
    path = folder / EVENTS_NAME
    path.write_bytes(path.read_bytes()[:-cut] + garbage.replace(b"\n", b" "))
    Events(folder).write("third", number=3)
    numbers = [event.get("number") for event in read_events(folder)]
    assert numbers in ([1, 3], [1, 2, 3])
    assert cut == 1 or garbage or numbers == [1, 3]


def test_a_record_that_cannot_be_written_stops_nothing(tmp_path: Path):
    events = Events(tmp_path / "missing")
    events.write("run-started")
    assert events.problem == "No such file or directory"
    assert list(read_events(tmp_path / "missing")) == []


def test_the_last_word_on_a_node_counts(tmp_path: Path):
    events = Events(tmp_path)
    events.write("run-started")
    events.write("node-started", node="a", kind="train")
    events.write("node-failed", node="a", kind="train", reason="NaN", peak_memory=7)
    assert read_record(tmp_path).nodes["a"].failed["reason"] == "NaN"
    events.write("node-started", node="a", kind="train")
    events.write("node-ended", node="a", kind="train", peak_memory=9, wall_seconds=1.5)
    record = read_record(tmp_path)
    assert record.nodes["a"].failed is None
    assert record.nodes["a"].attempts == 2
    assert record.nodes["a"].ended["wall_seconds"] == 1.5
    assert record.finished is None
    assert peaks(tmp_path) == {"a": 9}
    events.write("run-ended", status="done")
    assert read_record(tmp_path).finished["status"] == "done"
