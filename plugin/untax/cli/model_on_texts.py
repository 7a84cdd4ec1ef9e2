"""What the commands that read texts with a model have in common: their options, the model's name, the progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from untax.fisher.inputs import Data
    from untax.fisher.model import Model

Command = Callable[..., Any]
_OWN_BASE = (
    "Name the base that it was trained on: BASE+ADAPTER. If they are one and the same, let base_model_name_or_path in "
    "its adapter_config.json name it."
)


def texts(command: Command) -> Command:
    """MODEL, the data, the file to write, and which texts are read."""
    options = (
        click.argument("model", metavar="MODEL"),
        click.option(
            "--data", required=True, type=click.Path(path_type=Path), help="A .txt, .jsonl, .json or .parquet file."
        ),
        click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The file: NAME.safetensors."),
        click.option(
            "--samples", default=256, show_default=True, type=click.IntRange(1), help="N, how many texts are used."
        ),
        click.option(
            "--sequence-len", default=512, show_default=True, type=click.IntRange(2), help="Longer texts are cut."
        ),
    )
    return _with(command, options)


def passes(seed: str, dtype: str) -> Callable[[Command], Command]:
    """How texts are found in the data, and how the model reads them.

    Args:
        seed: what the seed is of.
        dtype: what is said of the dtype.
    """
    options = (
        click.option("--seed", default=42, show_default=True, help=seed),
        click.option("--column", default="text", show_default=True, help="Rows: the column with the text."),
        click.option(
            "--separator", help="Text: what stands between two texts  [default: <|endoftext|>, or else blank lines]."
        ),
        click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"])),
        click.option(
            "--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]), help=dtype
        ),
        click.option("--trust-remote-code", is_flag=True, help="Let code that comes with the model run."),
        click.option("--force", is_flag=True, help="Replace the file, once the new one is done."),
    )
    return lambda command: _with(command, options)


def _with(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def named_data(path: Path, column: str, separator: str | None) -> Data:
    """The data; rows with an instruction get the Alpaca prompt."""
    from untax.evaluate.suites.demo import documents
    from untax.fisher.inputs import Data

    def prompt(row: Mapping[str, Any]) -> str:
        return documents.prompt(dict(row)) + documents.NEWLINE

    if separator is not None:
        separator = separator.replace("\\n", "\n").replace("\\t", "\t")
    return Data(path, prompt, column=column, separator=separator)


def check_first(out: Path, data: Data, device: str, *, force: bool) -> None:
    """What can be refused at once, before a model is read or a large library imported.

    Raises:
        UntaxError: the output cannot be written, the data lacks the texts, or there is no such device.
    """
    from untax.data.text_columns import check_columns
    from untax.fisher.model import check_device
    from untax.fisher.output import check_output

    check_output(out, force=force)
    check_columns(data.path, data.column)
    check_device(device)


def named_model(text: str) -> Model:
    """MODEL, with its files found and checked."""
    from untax.adapters.stored import StoredAdapter
    from untax.fisher.model import Model
    from untax.merge.checks import check_inputs
    from untax.merge.references import read_reference
    from untax.merge.same_base import check_base

    reference = read_reference(text, where="MODEL")
    check_inputs([reference])
    adapter = None if reference.adapter is None else reference.adapter.folder
    if adapter is not None:
        check_base(StoredAdapter(adapter), reference.base, fix=_OWN_BASE)
    return Model(reference.base.path, reference.base.folder, reference.base.revision, adapter)


def quieten() -> None:
    """Imports talk of GPUs and kernels, and loading has bars of its own; must come before them."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")


@contextlib.contextmanager
def progress(what: str, count: int) -> Iterator[Callable[[int], object]]:
    """A bar over so many texts."""
    import sys

    from tqdm import tqdm

    # A log file gets a line every now and then, a terminal a bar that moves.
    seconds = 0.5 if sys.stderr.isatty() else 15.0
    with tqdm(total=count, desc=what, unit=" texts", mininterval=seconds, file=sys.stderr) as bar:
        yield bar.update
