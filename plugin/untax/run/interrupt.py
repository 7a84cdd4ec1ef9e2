"""An orderly end when a run is told to stop: by Ctrl-C, by a scheduler's SIGTERM, or as its terminal goes away."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

STOPPING = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def orderly() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP unwind like Ctrl-C does, and end with the exit code that shells expect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    # Started with `nohup`, a run is to outlive its terminal.
    installed = [number for number in STOPPING if before[number] != signal.SIG_IGN]
    for number in installed:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in installed:
            signal.signal(number, before[number])


def _end(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
