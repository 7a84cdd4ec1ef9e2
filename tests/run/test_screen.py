"""What is read off a log."""

from __future__ import annotations

from pathlib import Path

from untax.run.screen import log_lines, progress


def test_progress_is_the_last_bar_of_the_log(tmp_path: Path):
    log = tmp_path / "log"
    log.write_text("  0%|          | 0/13 [00:00<?, ?it/s]\r 77%|███████▋  | 10/13 [00:02<00:00,  3.99it/s]")
    assert progress(log) == "10/13 "
    log.write_text("loading")
    assert progress(log) == ""
    assert progress(tmp_path / "missing") == ""


def test_of_a_bar_only_its_last_state_is_shown(tmp_path: Path):
    log = tmp_path / "log"
    log.write_text("start\n  0%|  | 0/2\r 50%|  | 1/2\r100%|  | 2/2\n\nError: the reason\n")
    assert log_lines(log) == ["start", "100%|  | 2/2", "Error: the reason"]
    assert log_lines(tmp_path / "missing") == []
