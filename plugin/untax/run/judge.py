"""Why a command ended badly, in words: its exit status, and what its log says about memory and disk."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from untax.run.workers import Ended

TAIL_BYTES = 20_000
# What PyTorch, NCCL, Python and the kernel say; the first that is found is the reason.
CAUSES = (
    (
        re.compile(r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED"),
        "the GPU's memory was not enough: lower micro_batch_size or sequence_len, or see `untax check`",
    ),
    (
        re.compile(r"No space left on device|os error 28|Disk quota exceeded", re.IGNORECASE),
        "the disk is full: free some space, then run the same command again",
    ),
    (
        re.compile(r"MemoryError|Cannot allocate memory|DefaultCPUAllocator: can't allocate|std::bad_alloc"),
        "main memory was not enough: run fewer nodes at a time (--jobs), or see `untax check`",
    ),
)


def why(ended: Ended, log: Path) -> str:
    """The end of a command that failed, with its likely cause."""
    text = _tail(log)
    cause = next((said for pattern, said in CAUSES if pattern.search(text)), None)
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


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as handle:
            handle.seek(0, 2)
            handle.seek(max(0, handle.tell() - TAIL_BYTES))
            return handle.read().decode("utf-8", "replace")
    except OSError:
        return ""
