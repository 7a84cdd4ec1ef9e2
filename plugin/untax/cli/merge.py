"""``untax merge``."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from untax.merge.options import SHORT, VALUES, read_options


def _with_value_options(command: Any) -> Any:
    """mergekit-yaml's options that take a value; flags need not be known here: they go to mergekit's parser."""
    for name in VALUES:
        declarations = [f"--{name.replace('_', '-')}", *([SHORT[name]] if name in SHORT else [])]
        command = click.option(*declarations, name, hidden=True)(command)
    return command


@click.command(
    "merge",
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="CONFIG_FILE OUT_PATH")
@click.option(
    "--scale",
    "scales",
    multiple=True,
    type=float,
    help="What the merged delta is multiplied by: base + X * (merged - base)  [default: 1]. Several share the work and"
    " go into OUT_PATH-X each; 1 into OUT_PATH itself.",
)
@click.option("--as-adapter", is_flag=True, help="Merge adapters into one LoRA adapter (linear, task_arithmetic).")
@click.option("--rank", type=click.IntRange(1), help="Cut that adapter to this rank, by SVD  [default: exact].")
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "stream", "mergekit"]),
    help="stream: our own, for adapters of one base; mergekit: for everything; auto: the first that can.",
)
@click.option("--dry-run", is_flag=True, help="Check everything and tell what would be done.")
@click.option("--force", is_flag=True, help="Replace the merge that OUT_PATH holds, once this one is done.")
@_with_value_options
def command(
    arguments: tuple[str, ...],
    scales: tuple[float, ...],
    as_adapter: bool,
    rank: int | None,
    engine: str,
    dry_run: bool,
    force: bool,
    **values: str | None,
) -> None:
    """Merge the models and adapters that a mergekit YAML names into the folder OUT_PATH.

    Takes mergekit-yaml's YAML and every option of `mergekit-yaml --help` (such as --cuda, --random-seed,
    --out-shard-size, --quiet).

    \b
    Adapters of one base are streamed: the base is read once, tensors that no adapter changes are copied byte for byte,
    deltas are merged in fp32 and rounded once. mergekit itself does what cannot be streamed.
      - inputs are checked first: another base or tokenizer, cut-off files, NaN, keys that belong nowhere;
      - no merged copies of adapters are written;
      - OUT_PATH appears whole or not at all; the same merge again does nothing, another one asks for --force;
      - the same inputs give the same bytes (the seed is 42 unless --random-seed says another);
      - untax.json and the model card in OUT_PATH say what was merged, with digests.
    """
    from untax.merge.merge import Wish, merge, silent

    given = [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]
    flags = [argument for argument in arguments if argument.startswith("-")]
    read_options([*given, *flags])  # An unknown option comes before the count of paths, which its value may be among.
    paths = [argument for argument in arguments if not argument.startswith("-")]
    if len(paths) != 2:
        raise click.UsageError(f"Two paths are needed, CONFIG_FILE and OUT_PATH; got {len(paths)}: {' '.join(paths)}")
    with _terminable():
        made = merge(
            Path(paths[0]),
            Path(paths[1]),
            [*given, *flags],
            Wish(scales or (1.0,), engine, as_adapter, rank, force, dry_run),
            say=click.echo,
            progress=silent if "--quiet" in flags else _progress,
        )
    for out in made:
        click.echo(f"Merged into {out}")


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, by which schedulers stop a job, ends the merge as Ctrl-C does: nothing half-made is left."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    # A log file gets a line every now and then, a terminal a bar that moves.
    seconds = 0.5 if sys.stderr.isatty() else 15.0
    with tqdm(total=total, desc="merge", unit="B", unit_scale=True, mininterval=seconds, file=sys.stderr) as bar:
        yield bar.update
