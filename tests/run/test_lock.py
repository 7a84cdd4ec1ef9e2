"""One runner to a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from untax.errors import UntaxError
from untax.run.events import this_host
from untax.run.lock import Holder, folder_lock, holder


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
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_who_holds_a_folder_is_known_while_it_is_held(tmp_path: Path):
    lock = tmp_path / "lock"
    assert holder(lock) is None
    assert not lock.exists()
    with folder_lock(lock):
        held = holder(lock)
        assert held is not None
        assert (held.pid, held.host) == (os.getpid(), this_host())
        lock.write_text('{"pid": "cut')
        assert holder(lock) == Holder()
    assert holder(lock) is None
