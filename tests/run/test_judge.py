"""Why a command failed, in words that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from untax.run.judge import why
from untax.run.workers import Ended, Usage


@pytest.mark.parametrize(
    ("code", "log", "said"),
    [
        (1, "ValueError: no", "ended with exit code 1"),
        (
            1,
            "torch.OutOfMemoryError: CUDA out of memory. Tried",
            "ended with exit code 1 (the GPU's memory was not enough",
        ),
        (1, "OSError: [Errno 28] No space left on device", "the disk is full"),
        (1, "MemoryError", "main memory was not enough: run fewer nodes at a time (--jobs)"),
        (-9, "training", "was killed by SIGKILL (it held 3.0 GiB of main memory at most"),
        (-11, "", "was killed by SIGSEGV"),
        (-65, "", "was killed by signal 65"),
    ],
)
def test_ends(tmp_path: Path, code: int, log: str, said: str):
    (tmp_path / "log").write_text(log)
    assert said in why(Ended(code, Usage(1.0, peak_memory=3 * 2**30)), tmp_path / "log")


def test_only_the_end_of_a_log_is_the_reason(tmp_path: Path):
    (tmp_path / "log").write_text("No space left on device\n" + "later\n" * 10_000)
    assert why(Ended(1, Usage(1.0)), tmp_path / "log") == "ended with exit code 1"
    assert why(Ended(1, Usage(1.0)), tmp_path / "none") == "ended with exit code 1"
    assert why(Ended(0, Usage(1.0), problem="its machine died"), tmp_path / "log") == "its machine died"
