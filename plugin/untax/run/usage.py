"""What a command takes while it runs: memory of its processes, memory and energy of its GPUs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from untax.run.workers import Usage

SAMPLE_SECONDS = 1.0


class Meter:
    """Looks at a command's processes now and then, and says at its end what they took.

    Args:
        pid: the command's first process.
        gpus: the ids of the GPUs that are its own: numbers, or UUIDs.
    """

    def __init__(self, pid: int, gpus: Sequence[str] = ()):
        self.pid, self.gpus = pid, gpus
        self.started = time.monotonic()
        self.sampled = -SAMPLE_SECONDS
        self.peak = 0
        self._gpu = GpuMeter(gpus) if gpus else None

    @property
    def seconds(self) -> float:
        """How long the command has been running."""
        return time.monotonic() - self.started

    def sample(self) -> None:
        """Look, unless that was done within the last second."""
        if self.seconds - self.sampled < SAMPLE_SECONDS:
            return
        self.sampled = self.seconds
        self.peak = max(self.peak, _resident(self.pid))
        if self._gpu:
            self._gpu.sample()

    def usage(self, rusage: Any) -> Usage:
        """The whole, once the command has ended.

        Args:
            rusage: of the ended process, as ``os.wait4`` returns it; None if nobody could wait for it.
        """
        wall = self.seconds
        return Usage(
            wall_seconds=round(wall, 3),
            cpu_seconds=round(rusage.ru_utime + rusage.ru_stime, 3) if rusage else 0.0,
            # Linux counts the largest process in KiB; between two samples it may have been larger than either. It is at
            # least what this runner held when it forked, some 0.1 GiB.
            peak_memory=max(self.peak, rusage.ru_maxrss * 1024 if rusage else 0),
            gpu_seconds=round(wall * len(self.gpus), 3),
            gpu_peak_memory=self._gpu.peak if self._gpu else None,
            energy_joules=self._gpu.energy() if self._gpu else None,
        )


class GpuMeter:
    """Memory and energy of some GPUs, as far as NVIDIA's driver tells them; MIG slices tell no energy."""

    def __init__(self, gpus: Sequence[str]):
        self.peak: int | None = None
        self._handles: list[Any] = []
        with nvml() as driver:
            if driver:
                self._handles = [_handle(driver, gpu) for gpu in gpus]
        self._at_start = self._joules()

    def sample(self) -> None:
        """Look at the memory that is taken now."""
        with nvml() as driver:
            if driver and self._handles:
                used = sum(int(driver.nvmlDeviceGetMemoryInfo(handle).used) for handle in self._handles)
                self.peak = max(self.peak or 0, used)

    def energy(self) -> float | None:
        """Joules since this meter was made, or None where a GPU does not count them."""
        now = self._joules()
        return None if now is None or self._at_start is None else round(now - self._at_start, 3)

    def _joules(self) -> float | None:
        with nvml() as driver:
            if driver and self._handles:
                return sum(driver.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in self._handles) / 1000
        return None


@contextlib.contextmanager
def nvml() -> Iterator[Any]:
    """NVIDIA's library, or None without it; what it refuses inside the block is passed over."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        with contextlib.suppress(pynvml.NVMLError):
            yield pynvml
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _handle(driver: Any, gpu: str) -> Any:
    if gpu.isdigit():
        return driver.nvmlDeviceGetHandleByIndex(int(gpu))
    return driver.nvmlDeviceGetHandleByUUID(gpu)


def _resident(pid: int) -> int:
    """Bytes of main memory that a process and all that descend from it hold now."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        first = psutil.Process(pid)
        for process in [first, *first.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total
