"""Pretraining texts as training rows for Axolotl, to be mixed into instruction data: the baseline Replay."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from untax.data.completion import Completion, load_completion
from untax.files import new_file
from untax.manifest import MANIFEST_NAME, write_manifest
from untax.replay.choose import Row, Taken, Taker, Target
from untax.replay.cut import Cutter
from untax.replay.instruction import count_rows, count_tokens, read_instruction
from untax.replay.made import Made, identities, same_as
from untax.replay.request import FILE_NAME, Request
from untax.replay.sources import FilePool, Pool, check_sources, pools

Say = Callable[[str], object]
Progress = Callable[[int, str], AbstractContextManager[Callable[[int], object]]]
"""Called with an amount and what it is of; a context whose value is called with how much more was done."""


@dataclass(frozen=True)
class Prepared:
    """All that is known before texts are chosen.

    Attributes:
        pools: what the texts are chosen from.
        targets: how much of each.
        completion: Axolotl's tokenisation.
        instruction: how many rows, or tokens, the instruction data has, if they were counted.
    """

    pools: list[Pool]
    targets: list[Target]
    completion: Completion
    instruction: int | None


def replay(
    request: Request,
    out: Path,
    *,
    force: bool = False,
    dry_run: bool = False,
    say: Say = print,
    progress: Progress,
) -> Made | None:
    """Write ``replay.jsonl`` and its manifest into ``out``; nothing if that was done before, of the same inputs.

    Args:
        request: what decides the rows.
        out: the folder.
        force: replace what is there.
        dry_run: only say what would be done.
        say: called with each sentence for the user.
        progress: a bar.

    Raises:
        UntaxError: an input or the output is not as it must be, or there are too few texts; nothing was written.
    """
    started = time.time()
    check_sources(request.sources)
    inputs = identities(request)
    made = same_as(out, request, inputs, force=force)
    if made is not None:
        say(f"{out / FILE_NAME} is there already, made of the same inputs: nothing to do (--force makes it anew).")
        return made
    ready = _prepare(request, inputs, say)
    for pool, target in zip(ready.pools, ready.targets, strict=True):
        say(f"{target.amount:,} {target.by} of {pool.name}")
    if dry_run:
        say(f"Nothing is written: {out / FILE_NAME} would have rows of at most {request.sequence_len} tokens.")
        return None
    return _write(request, ready, out, inputs, started, progress)


def _prepare(request: Request, inputs: dict[str, str], say: Say) -> Prepared:
    """Read what takes processes of their own, then load the tokenizer."""
    chosen_from = pools(request.sources, request.seed, inputs)
    for pool in chosen_from:
        if isinstance(pool, FilePool):
            say(f"Reading {pool.name} ...")
            pool.open()
    like = request.like if request.rows is None else None
    corpus = read_instruction(like) if like else None
    completion = load_completion(request.cfg, request.sequence_len)
    instruction = None
    if like and corpus:
        instruction = count_rows(corpus, first_turn=like.first_turn)
        if request.by == "tokens":
            instruction = count_tokens(
                corpus, completion.tokens, first_turn=like.first_turn, sequence_len=request.sequence_len
            )
        say(f"The instruction data has {instruction:,} {request.by}; {request.ratio:g} times that is wanted.")
    amount = request.rows or max(1, round((instruction or 0) * request.ratio))
    shares = [amount // len(chosen_from) + (index < amount % len(chosen_from)) for index in range(len(chosen_from))]
    used = [(pool, share) for pool, share in zip(chosen_from, shares, strict=True) if share]
    targets = [Target(share, request.by, request.sequence_len) for _, share in used]
    return Prepared([pool for pool, _ in used], targets, completion, instruction)


def _write(
    request: Request, ready: Prepared, out: Path, inputs: dict[str, str], started: float, progress: Progress
) -> Made:
    made_here = not out.exists()
    try:
        with new_file(out / FILE_NAME) as part:
            taken = _take(request, ready, part, progress)
            # From here on the old manifest speaks of a file that is no more.
            (out / MANIFEST_NAME).unlink(missing_ok=True)
    except BaseException:
        if made_here and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        raise
    rows = [row for one in taken for row in one.rows]
    facts: dict[str, Any] = {
        "rows": len(rows),
        "tokens": sum(row.tokens for row in rows),
        "texts": len({row.key for row in rows}),
        "later_pieces": sum(row.turn > 0 for row in rows),
        "every_text": all(one.whole for one in taken),
        f"instruction_{request.by}": ready.instruction,
    }
    facts = {key: value for key, value in facts.items() if value is not None}
    write_manifest(
        out,
        what="replay",
        outputs=[FILE_NAME],
        started=started,
        inputs=inputs,
        seed=request.seed,
        request=request.record(),
        replay=facts,
    )
    return Made(out / FILE_NAME, facts)


def _take(request: Request, ready: Prepared, part: Path, progress: Progress) -> list[Taken]:
    """Cut the rows and write them to ``part``, in the order of their keys, whichever pool they are from."""
    cutter = Cutter(ready.completion, request.shortest)
    total = sum(target.amount for target in ready.targets)
    with tempfile.TemporaryFile(dir=part.parent) as spool, progress(total, request.by) as tick:
        taker = Taker(cutter, request.seed, spool, tick)
        taken = [taker.take(pool, target) for pool, target in zip(ready.pools, ready.targets, strict=True)]
        every: list[Row] = sorted(row for one in taken for row in one.rows)
        with part.open("wb") as lines:
            for row in every:
                spool.seek(row.place)
                lines.write(spool.read(row.size))
    return taken
