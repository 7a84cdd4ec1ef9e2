"""Processes of a command that outlive its first one, as a launcher's training and torchrun's ranks do, are ended."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from untax.errors import UntaxError
from untax.run.orphans import members
from untax.run.process import environment, start, stop

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what processes inherited")

RANK = "import signal, time\nsignal.signal(signal.SIGTERM, {handler})\nopen('rank.ready', 'w').close()\ntime.sleep(120)"
# As torchrun starts them: in a session of its own, which no signal to the command's group reaches.
LAUNCHER = (
    "import pathlib, subprocess, sys, time\n"
    "rank = subprocess.Popen([sys.executable, '-c', {rank!r}], start_new_session=True)\n"
    "while not pathlib.Path('rank.ready').exists(): time.sleep(0.02)\n"
    "pathlib.Path('rank.pid').write_text(str(rank.pid))\n"
    "{then}"
)


def launcher(then: str, *, handler: str = "signal.SIG_DFL") -> str:
    return LAUNCHER.format(rank=RANK.format(handler=handler), then=then)


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except OSError:
        return False


def wait_for_rank(folder: Path) -> int:
    deadline = time.monotonic() + 30
    while not (folder / "rank.pid").exists() or not (folder / "rank.pid").read_text():
        assert time.monotonic() < deadline, "the launcher never started its rank"
        time.sleep(0.02)
    return int((folder / "rank.pid").read_text())


def wait_until_dead(pid: int, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while is_alive(pid):
        assert time.monotonic() < deadline, "it goes on without its runner"
        time.sleep(0.05)


def test_ranks_of_a_launcher_that_fails(tmp_path, make_node, run_nodes):
    with pytest.raises(UntaxError, match="exit code 3"):
        run_nodes([make_node("a", code=launcher("raise SystemExit(3)"))])
    wait_until_dead(wait_for_rank(tmp_path), 5)


@pytest.mark.parametrize("handler", ["signal.SIG_DFL", "signal.SIG_IGN"])
def test_ranks_of_a_node_that_is_stopped(handler, tmp_path, make_node):
    running = start(make_node("a", code=launcher("rank.wait()", handler=handler)), tmp_path, variables=environment(1))
    rank = wait_for_rank(tmp_path)
    assert rank in members(str(tmp_path / ".untax/progress/a.json"))
    stop([running])
    wait_until_dead(rank, 5)
    assert members(str(tmp_path / ".untax/progress/a.json")) == []


def test_another_node_is_left_alone(tmp_path, make_node):
    first, second = (
        start(make_node(name, code="import time; time.sleep(60)"), tmp_path, variables=environment(1)) for name in "ab"
    )
    os.kill(first.process.pid, signal.SIGKILL)
    while first.poll() is None:
        time.sleep(0.02)
    time.sleep(0.2)
    assert second.poll() is None
    stop([second])
