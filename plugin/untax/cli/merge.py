"""``untax merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

# mergekit-yaml's options that take a value (a test compares them with mergekit's own). Flags need not be known here:
# whatever is not, goes to mergekit's parser.
VALUE_OPTIONS: dict[str, tuple[str, ...]] = {
    "transformers_cache": ("--transformers-cache",),
    "lora_merge_cache": ("--lora-merge-cache",),
    "lora_merge_dtype": ("--lora-merge-dtype",),
    "device": ("--device",),
    "out_shard_size": ("--out-shard-size",),
    "random_seed": ("--random-seed",),
    "num_threads": ("--num-threads", "-j"),
    "write_threads": ("--write-threads",),
}


def _with_value_options(command: Any) -> Any:
    for name, declarations in VALUE_OPTIONS.items():
        command = click.option(*declarations, name, hidden=True)(command)
    return command


@click.command(
    "merge",
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="CONFIG_FILE OUT_PATH")
@click.option("--force", is_flag=True, help="Replace what OUT_PATH holds, once the merge is done.")
@_with_value_options
def command(arguments: tuple[str, ...], force: bool, **values: str | None) -> None:
    """Merge the models and adapters that a mergekit YAML names into the folder OUT_PATH.

    Takes mergekit-yaml's YAML and every option of `mergekit-yaml --help` (such as --cuda, --lora-merge-dtype,
    --random-seed, --out-shard-size, --quiet), and mergekit itself merges.

    \b
    Added to it:
      - inputs are checked first: adapters of another base, cut-off files, NaN, keys that PEFT would drop;
      - an adapter that changed is never replaced by an older merged copy of it;
      - OUT_PATH appears whole or not at all; the same merge again does nothing, another one asks for --force;
      - the same inputs give the same bytes (the seed is 42 unless --random-seed says another);
      - untax.json in OUT_PATH says what was merged, with digests.
    """
    from untax.merge.merge import merge

    paths = [argument for argument in arguments if not argument.startswith("-")]
    if len(paths) != 2:
        raise click.UsageError(f"Two paths are needed, CONFIG_FILE and OUT_PATH; got {len(paths)}: {' '.join(paths)}")
    given = [f"{VALUE_OPTIONS[name][0]}={value}" for name, value in values.items() if value is not None]
    flags = [argument for argument in arguments if argument.startswith("-")]
    if merge(Path(paths[0]), Path(paths[1]), [*given, *flags], force=force, say=click.echo):
        click.echo(f"Merged into {paths[1]}")
