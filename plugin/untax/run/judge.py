"""Why a command ended badly, in words: its exit status, what its log says of memory and disk, and the disk itself."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

from untax.run.progress import end_of
from untax.run.workers import Ended

TAIL_BYTES = 20_000
FULL_BYTES = 1 << 16
"""Space on a disk below which a command that failed there failed for want of space: it could not even say so."""
FULL = "the disk is full: free some space, then run the same command again"
# What PyTorch, NCCL, Python and the kernel say; the first that is found is the reason.
CAUSES = (
    (
        re.compile(r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED"),
        "the GPU's memory was not enough: lower micro_batch_size or sequence_len, or see `untax check`",
    ),
    (
        re.compile(
            r"No space left on device|os error 28|Disk quota exceeded|of disk, and [\d.]+ .?B are free", re.IGNORECASE
        ),
        FULL,
    ),
    (
        re.compile(
            r"MemoryError|Cannot allocate memory|DefaultCPUAllocator: can't allocate|std::bad_alloc"
            r"|failed to map segment from shared object"
        ),
        "main memory was not enough: run fewer nodes at a time (--jobs), or see `untax check`",
    ),
    (
        # torchrun of a rank, PyTorch of a data loader's worker, Python of a pool's.
        re.compile(r"Signal 9 \(SIGKILL\)|is killed by signal: Killed|A process in the process pool was terminated"),
        "one of its processes was killed; if nobody did that, the kernel did for want of memory: run fewer nodes at a "
        "time (--jobs)",
    ),
    (
        re.compile(r"Weights only load failed"),
        "a checkpoint holds something else than a training saves, which was not loaded: remove its newest checkpoint-* "
        "folder, then run the same command again",
    ),
)


OWN = re.compile(r"^untax: error: (.+)$", re.MULTILINE)
"""How untax's own commands say what was wrong; the plugins say it in Axolotl's log."""


def why(ended: Ended, log: Path) -> str:
    """The end of a command that failed, with its likely cause."""
    text = end_of(log, TAIL_BYTES)
    cause = next((said for pattern, said in CAUSES if pattern.search(text)), None)
    if cause is None:
        cause = FULL if _is_full(log.parent) else next(iter(OWN.findall(text)[-1:]), None)
    if ended.problem:
        end = ended.problem
    elif ended.code < 0:
        end = f"was killed by {_name(-ended.code)}"
        if -ended.code == signal.SIGKILL and cause is None:
            gib = ended.usage.peak_memory / 2**30
            cause = (
                f"it held {gib:.1f} GiB of main memory at most; if nobody killed it, the kernel did for want of "
                "memory: run fewer nodes at a time (--jobs)"
            )
    else:
        end = f"ended with exit code {ended.code}"
    return f"{end} ({cause})" if cause else end


def _is_full(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        disk = os.statvfs(folder)
        return disk.f_blocks > 0 and disk.f_bavail * disk.f_frsize < FULL_BYTES
    return False


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
