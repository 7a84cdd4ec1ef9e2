"""``untax fisher``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from untax.fisher.model import Model


@click.command("fisher")
@click.argument("model", metavar="MODEL")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="A .txt, .jsonl, .json or .parquet file.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The file: NAME.safetensors.")
@click.option("--samples", default=256, show_default=True, type=click.IntRange(1), help="N, how many texts are used.")
@click.option("--sequence-len", default=512, show_default=True, type=click.IntRange(2), help="Longer texts are cut.")
@click.option(
    "--labels",
    default="data",
    show_default=True,
    type=click.Choice(["data", "model"]),
    help="The tokens scored: the text's own (empirical Fisher), or drawn from the model at each place.",
)
@click.option(
    "--modules",
    default="linear",
    show_default=True,
    type=click.Choice(["linear", "all"]),
    help="The weights of all linear layers but the output layer, as LoRA's all-linear; or every parameter.",
)
@click.option("--seed", default=42, show_default=True, help="Of which texts are used, and of tokens drawn.")
@click.option("--column", default="text", show_default=True, help="Rows: the column with the text.")
@click.option("--separator", help="Text: what stands between two texts  [default: <|endoftext|>, or else blank lines].")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "bfloat16"]),
    help="Of the passes; squares are summed in float32.",
)
@click.option("--trust-remote-code", is_flag=True, help="Let code that comes with the model run.")
@click.option("--force", is_flag=True, help="Replace the file, once the new one is done.")
def command(
    model: str,
    data: Path,
    out: Path,
    column: str,
    separator: str | None,
    device: str,
    trust_remote_code: bool,
    force: bool,
    **settings: Any,
) -> None:
    """Estimate the diagonal Fisher information of MODEL's weights on texts.

    F_j = 1/N * sum over n of (d log p(x_n) / d theta_j)^2, with log p summed over the tokens of text x_n, squared for
    each text apart. The file has one float32 tensor for each weight, under its name in MODEL's checkpoint, and says in
    its metadata how it was made. NAME.untax.json beside it is its manifest.

    MODEL is a folder, a hub id, or BASE+ADAPTER: with the LoRA adapter's delta added, F is of the full weights.

    Rows without the column text but with instruction, input and output give the output, scored after the Alpaca prompt.
    Blank texts do not count. The same seed takes the same texts, and for more samples some more. Nothing is written
    before the end, and an interrupted estimate begins anew.
    """
    _quieten()
    from untax.evaluate.suites.demo import documents
    from untax.fisher.fisher import Data, Settings, check_output, fisher

    check_output(out, force=force)  # Before a model is fetched.

    def prompt(row: Mapping[str, Any]) -> str:
        return documents.prompt(dict(row)) + documents.NEWLINE

    if separator is not None:
        separator = separator.replace("\\n", "\n").replace("\\t", "\t")
    made = fisher(
        _model(model),
        Data(data, prompt, column=column, separator=separator),
        out,
        Settings(**settings),
        device=device,
        trust_remote_code=trust_remote_code,
        force=force,
        say=click.echo,
        progress=_progress,
    )
    click.echo(
        f"{made.path}: {made.tensors} tensors, {made.values:,} numbers, mean {made.mean:.4g}; "
        f"{made.samples} texts, {made.tokens:,} tokens scored"
    )


def _model(text: str) -> Model:
    """MODEL, with its files found and checked."""
    from untax.fisher.model import Model
    from untax.merge.checks import check_inputs
    from untax.merge.references import read_reference

    reference = read_reference(text, where="MODEL")
    check_inputs([reference])
    adapter = None if reference.adapter is None else reference.adapter.folder
    return Model(reference.base.path, reference.base.folder, reference.base.revision, adapter)


def _quieten() -> None:
    """Imports talk of GPUs and kernels, and loading has bars of its own; must come before them."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")


@contextlib.contextmanager
def _progress(count: int) -> Iterator[Callable[[int], object]]:
    import sys

    from tqdm import tqdm

    # A log file gets a line every now and then, a terminal a bar that moves.
    seconds = 0.5 if sys.stderr.isatty() else 15.0
    with tqdm(total=count, desc="fisher", unit=" texts", mininterval=seconds, file=sys.stderr) as bar:
        yield bar.update
