"""The streaming engine: the base is read once, in order; what a merge changes is computed by threads, piece by piece;
the output is written in order. No tensor need be in memory as a whole.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from untax.merge.pieces import Piece, copied, merged, pieces
from untax.merge.sequential import SequentialWriter
from untax.merge.shards import OutputTensor, Shard, write_index
from untax.merge.source import BaseReader
from untax.merge.tensor_job import TensorJob

# Tensors whose statistics are computed ahead, so that no thread waits for those of its own piece.
AHEAD = 3
# Pieces on their way, for each thread.
_PENDING = 3

Advance = Callable[[int], object]


@dataclass(frozen=True)
class Stream:
    """A merge, ready to run.

    Attributes:
        shards: the files of the output.
        jobs: the tensors that are changed, by name.
        scales: what the merged delta is multiplied by, one for each output.
        threads: how many compute.
    """

    shards: Sequence[Shard]
    jobs: Mapping[str, TensorJob]
    scales: Sequence[float]
    threads: int

    def write(self, outs: Sequence[Path], advance: Advance = lambda count: None) -> list[dict[str, str]]:
        """Write the weights of every output; the digests of the base's files, which are read anyway, are remembered.

        Args:
            outs: an existing folder for each scale.
            advance: called with the bytes that were written to each output.

        Returns:
            For each output, the digest (SHA-256) of each file by name.

        Raises:
            UntaxError: NaN or infinity in the base, in a delta, or after rounding to the output's dtype; a file that
                was cut off meanwhile.
        """
        with _one_thread_each(self.threads) as pool, ThreadPoolExecutor(1) as disk, BaseReader() as reader:
            prepared = self._prepared(pool)
            digests: list[dict[str, str]] = [{} for _ in outs]
            for shard in self.shards:
                written = self._shard(shard, outs, pool, disk, reader, prepared, advance)
                for found, value in zip(digests, written, strict=True):
                    found[shard.name] = value
        for out in outs:
            write_index(self.shards, out)
        return digests

    def _shard(
        self,
        shard: Shard,
        outs: Sequence[Path],
        pool: ThreadPoolExecutor,
        disk: ThreadPoolExecutor,
        reader: BaseReader,
        prepared: Iterator[Future[Any]],
        advance: Advance,
    ) -> list[str]:
        header = shard.header()
        with contextlib.ExitStack() as stack:
            writers = [SequentialWriter(out / shard.name, disk) for out in outs]
            for writer in writers:
                stack.callback(writer.abandon)
                writer.write(header)
            advance(len(header))
            for parts in self._pending(shard, pool, reader, prepared):
                for writer, part in zip(writers, parts if len(parts) > 1 else parts * len(writers), strict=True):
                    writer.write(part)
                advance(len(parts[0]))
            return [writer.close() for writer in writers]

    def _pending(
        self, shard: Shard, pool: ThreadPoolExecutor, reader: BaseReader, prepared: Iterator[Future[Any]]
    ) -> Iterator[list[memoryview]]:
        """The bytes of every piece, in order: one for all outputs, or one for each."""
        pending: deque[Future[list[memoryview]]] = deque()
        for tensor in shard.tensors:
            job = self.jobs.get(tensor.name)
            statistics = None if job is None else next(prepared).result()
            for piece in pieces(tensor, whole_rows=job is not None):
                content = reader.read(tensor.source.file, piece.start, piece.stop)
                pending.append(_submit(pool, tensor, piece, content, job, statistics))
                while len(pending) > _PENDING * self.threads:
                    yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _prepared(self, pool: ThreadPoolExecutor) -> Iterator[Future[Any]]:
        """The statistics of all changed tensors in the order of the output, some of them computed ahead."""
        ahead: deque[Future[Any]] = deque()
        for shard in self.shards:
            for tensor in shard.tensors:
                if tensor.name in self.jobs:
                    ahead.append(pool.submit(self.jobs[tensor.name].prepare))
                    if len(ahead) > AHEAD:
                        yield ahead.popleft()
        yield from ahead


def _submit(
    pool: ThreadPoolExecutor, tensor: OutputTensor, piece: Piece, content: bytearray, job: TensorJob | None, found: Any
) -> Future[list[memoryview]]:
    if job is None:
        return pool.submit(copied, tensor, piece, content)
    return pool.submit(merged, tensor, piece, content, job, found)


@contextlib.contextmanager
def _one_thread_each(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads in which torch computes alone: the same sums in the same order, however many there are."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)
