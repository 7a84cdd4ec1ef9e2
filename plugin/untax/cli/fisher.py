"""``untax fisher``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from untax.cli.model_on_texts import check_first, named_data, named_model, passes, progress, quieten, texts


@click.command("fisher", context_settings={"help_option_names": ["-h", "--help"]})
@texts
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
@passes("Of which texts are used, and of tokens drawn.", "Of the passes; squares are summed in float32.")
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
    quieten()
    from untax.fisher.fisher import Settings, fisher

    texts_of = named_data(data, column, separator)
    check_first(out, texts_of, device, force=force)
    made = fisher(
        named_model(model),
        texts_of,
        out,
        Settings(**settings),
        device=device,
        trust_remote_code=trust_remote_code,
        force=force,
        say=click.echo,
        progress=partial(progress, "fisher"),
    )
    click.echo(
        f"{made.path}: {made.tensors} tensors, {made.values:,} numbers, mean {made.mean:.4g}; "
        f"{made.samples} texts, {made.tokens:,} tokens scored"
    )
