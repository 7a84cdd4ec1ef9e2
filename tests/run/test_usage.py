"""What commands took, against what they are known to take."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from untax.recipes.graph import Node
from untax.run.process import environment, start
from untax.run.usage import GpuMeter
from untax.run.workers import Ended


def run(folder: Path, code: str) -> Ended:
    node = Node("a", "merge", (sys.executable, "-c", code), ("outputs/a",))
    running = start(node, folder, variables=environment(1))
    deadline = time.monotonic() + 60
    while (ended := running.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return ended


def test_cpu_time_counts_what_was_computed_and_not_what_was_waited(tmp_path: Path):
    busy = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass\ntime.sleep(0.7)"
    usage = run(tmp_path, busy).usage
    assert 0.5 <= usage.cpu_seconds < usage.wall_seconds - 0.5
    assert usage.wall_seconds >= 1.2
    assert usage.gpu_seconds == 0
    assert usage.energy_joules is None


def test_cpu_time_and_memory_of_children_count(tmp_path: Path):
    child = (
        "import time; x = bytearray(150_000_000); end = time.process_time() + 0.4\n"
        "while time.process_time() < end: pass\n"
        "time.sleep(1.5)"
    )
    parent = (
        "import subprocess, sys\n"
        f"for child in [subprocess.Popen([sys.executable, '-c', {child!r}]) for _ in range(2)]: child.wait()"
    )
    usage = run(tmp_path, parent).usage
    assert usage.cpu_seconds >= 0.8
    # Linux counts for a child what its parent held when it was forked, which here is the whole test run.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 300_000_000 <= usage.peak_memory < max(700_000_000, own + 50_000_000)


def test_memory_of_a_moment_between_two_looks_counts(tmp_path: Path):
    assert run(tmp_path, "x = bytearray(200_000_000)").usage.peak_memory >= 200_000_000


@pytest.mark.parametrize(("code", "expected"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)])
def test_the_end(tmp_path: Path, code: str, expected: int):
    assert run(tmp_path, code).code == expected


class Nvml:
    """Stands in for NVIDIA's driver, of which there is none here."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.joules, self.used = {0: 5.0, 1: 100.0}, {0: 10, 1: 20}

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> float:
        return self.joules[handle] * 1000

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return type("Info", (), {"used": self.used[handle]})


def test_energy_and_memory_of_the_nodes_own_gpus(monkeypatch):
    driver = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    meter = GpuMeter(["0", "1"])
    meter.sample()
    driver.used[1] = 50
    meter.sample()
    driver.used, driver.joules = {0: 0, 1: 0}, {0: 6.5, 1: 103.0}
    assert meter.peak == 60
    assert meter.energy() == 4.5


def test_a_gpu_that_tells_nothing(monkeypatch):
    driver = Nvml()

    def refuse(_: int) -> float:
        raise driver.NVMLError

    monkeypatch.setattr(driver, "nvmlDeviceGetTotalEnergyConsumption", refuse)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    meter = GpuMeter(["0"])
    assert meter.energy() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert GpuMeter(["0"]).energy() is None
