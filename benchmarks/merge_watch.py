"""One command as a process tree: its time, its peak memory, and what it reads and writes, as Linux counts them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

INTERVAL = 0.02


@dataclass
class Watched:
    """What one command took.

    Attributes:
        seconds: from the start of the process to its end.
        flush_seconds: what writing its files through to the disk took afterwards.
        cpu_seconds: user and system, of it and its children.
        peak_rss: bytes; the larger of one process's own maximum and the sampled sum of the tree. Pages of mapped files
            count while they are in memory.
        peak_anonymous: bytes without pages of files, sampled.
        read: bytes of all read calls, from the cache or the disk; mapped files are not among them.
        read_disk: bytes that came from the disk, mapped or read.
        written: bytes of all write calls, to files and pipes.
        written_disk: bytes that went, or will go, to the disk.
    """

    seconds: float
    flush_seconds: float
    cpu_seconds: float
    peak_rss: int
    peak_anonymous: int
    read: int
    read_disk: int
    written: int
    written_disk: int


class Failed(Exception):
    """The command did not end well; its last lines are the message."""


def watch(command: list[str], *, environment: dict[str, str], log: Path, results: list[Path]) -> Watched:
    """Run a command to its end.

    Args:
        command: program and arguments.
        environment: all of it.
        log: where its output goes.
        results: files and folders that it makes, to be flushed afterwards.
    """
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        peaks = _sample(process.pid)
        seconds = time.perf_counter() - started
        # It has ended but is not yet forgotten: its counters, its children's among them, are final.
        counters = _counters(process.pid)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        raise Failed(f"{Path(command[0]).name} ended with {process.returncode}:\n" + "\n".join(lines[-15:]))
    return Watched(
        seconds=seconds,
        flush_seconds=_flush(results),
        cpu_seconds=used.ru_utime + used.ru_stime,
        peak_rss=peaks[0],
        peak_anonymous=peaks[1],
        read=counters["rchar"],
        read_disk=counters["read_bytes"],
        written=counters["wchar"],
        written_disk=counters["write_bytes"],
    )


def forget(paths: list[Path]) -> None:
    """Ask the kernel to drop files from its cache, so that they are read from the disk again; no root needed."""
    for file in _files(paths):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def size(paths: list[Path]) -> int:
    """Bytes of all files, each once."""
    return sum(file.stat().st_size for file in _files(paths))


def _files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        yield from (entry for entry in (path.rglob("*") if path.is_dir() else [path]) if entry.is_file())


def _flush(paths: list[Path]) -> float:
    started = time.perf_counter()
    for file in _files(paths):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return time.perf_counter() - started


def _sample(pid: int) -> tuple[int, int]:
    """Peaks of (resident, anonymous) bytes of the tree until the process ends.

    The kernel's own maximum (VmHWM) of each process misses nothing between two samples. ru_maxrss would not do: it
    begins with the memory of the process that started the command.
    """
    root = psutil.Process(pid)
    peak_resident = peak_anonymous = 0
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        found = [_memory(one) for one in (pid, *_children(root))]
        highest = max(one.get("VmHWM", 0) for one in found)
        peak_resident = max(peak_resident, highest, sum(one.get("VmRSS", 0) for one in found))
        peak_anonymous = max(peak_anonymous, sum(one.get("RssAnon", 0) for one in found))
        time.sleep(INTERVAL)
    return peak_resident, peak_anonymous


def _children(root: psutil.Process) -> list[int]:
    try:
        return [child.pid for child in root.children(recursive=True)]
    except psutil.Error:
        return []


def _memory(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(number) * 1024 for name, number, _ in fields}


def _counters(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return {name: int(value) for name, _, value in (line.partition(":") for line in lines)}
