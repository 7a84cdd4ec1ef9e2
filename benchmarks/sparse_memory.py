"""The most memory that a piece of work holds at once, beyond what was there before."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def peak_bytes(work: Callable[[], Any], device: str) -> int:
    """From torch's own record of every allocation: on a GPU its allocator's peak, on a CPU the profiler's events."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    live = peak = 0
    for size in _allocations(record):
        live += size
        peak = max(peak, live)
    return peak


def _allocations(record: Any) -> list[int]:
    """Bytes allocated, or freed if negative, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    found = [event for event in events if event.get("name") == "[memory]"]
    return [event["args"]["Bytes"] for event in sorted(found, key=lambda event: event["ts"])]
