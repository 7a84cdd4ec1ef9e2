"""A merge over one base, streamed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from untax.merge.kind import Advance, Kind, Made
from untax.merge.plan import Plan, make_plan, unknown_keys
from untax.merge.shards import Shard, output_size
from untax.merge.side_files import copy_side_files


@dataclass(frozen=True)
class StreamMerge(Kind):
    """See ``untax.merge.stream``."""

    engine = "stream"
    defers_digests = True

    @cached_property
    def plan(self) -> Plan:
        """What is done to which tensor."""
        return make_plan(self.config)

    @cached_property
    def shards(self) -> list[Shard]:
        """The files of each output."""
        return self.plan.shards(self.options.shard_bytes)

    def bytes_needed(self) -> int:
        """The output's own size."""
        return output_size(self.shards)

    def notes(self) -> list[str]:
        """Keys that nobody reads.

        Raises:
            UntaxError: the configuration or a parameter is wrong.
        """
        self.plan.check()
        return [*unknown_keys(self.config), *self.plan.settings.unknown(), *self.plan.remarks()]

    def describe(self) -> Iterator[str]:
        """Counts of tensors and files."""
        changed, every = self.plan.changed(), self.plan.base.tensors
        yield f"{self.plan.method.name} of {len(self.plan.models)} models over {self.plan.source.path}, streamed."
        yield f"{len(changed)} of {len(every)} tensors are changed by adapters; the others are copied byte for byte."
        yield f"{len(self.shards)} file(s) for each output, floating tensors as {self.plan.dtype or 'in the base'}."

    def write(self, parts: Sequence[Path], scales: Sequence[float], names: Sequence[str], advance: Advance) -> Made:
        """One pass over the base for all scales."""
        stream = self.plan.stream(self.shards, seed=self.options.seed, scales=scales, threads=self._threads())
        digests = stream.write(parts, advance)
        for part in parts:
            tokenizer = bool(self.options["copy_tokenizer"])
            copy_side_files(self.plan.base.folder, part, dtype=self.plan.dtype, tokenizer=tokenizer)
        changed = {"changed": len(stream.jobs), "copied": len(self.plan.base.tensors) - len(stream.jobs)}
        return Made(digests, {"method": self.plan.method.name, "tensors": changed, "threads": stream.threads})

    def card(self, facts: Mapping[str, Any]) -> dict[str, str]:
        """The method, its paper, and how exact it is."""
        url = self.plan.method.url
        return {
            "Method": f"[`{facts['method']}`]({url})" if url else f"`{facts['method']}`",
            "Arithmetic": "fp32 on the adapters' deltas, rounded once; other tensors are the base's own bytes",
        }

    def _threads(self) -> int:
        if self.options["num_threads"] is not None:
            return max(1, int(self.options["num_threads"]))
        given = os.environ.get("OMP_NUM_THREADS", "")
        return int(given) if given.isdecimal() and int(given) else len(os.sched_getaffinity(0))
