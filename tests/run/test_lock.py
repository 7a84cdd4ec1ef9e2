"""One runner to a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from untax.errors import UntaxError
from untax.run.lock import folder_lock


def test_the_second_runner_is_told_who_holds_the_folder(tmp_path: Path):
    lock = tmp_path / ".untax" / "lock"
    with folder_lock(lock), pytest.raises(UntaxError, match=str(os.getpid())), folder_lock(lock):
        pass
    with folder_lock(lock):
        pass


def test_the_lock_of_a_killed_runner_does_not_block(tmp_path: Path):
    lock = tmp_path / "lock"
    code = (
        "import os, signal; from pathlib import Path; from untax.run.lock import folder_lock\n"
        f"with folder_lock(Path({str(lock)!r})): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert lock.exists()
    with folder_lock(lock):
        assert lock.read_text() == str(os.getpid())
