"""``untax gram``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from untax.cli.model_on_texts import check_first, named_data, named_model, passes, progress, quieten, texts


@click.command("gram", context_settings={"help_option_names": ["-h", "--help"]})
@texts
@passes("Of which texts are used.", "Of the passes; inner products are computed in float32.")
def command(
    model: str,
    data: Path,
    out: Path,
    column: str,
    separator: str | None,
    device: str,
    trust_remote_code: bool,
    force: bool,
    **reading: Any,
) -> None:
    """Compute the inner products of what goes into MODEL's linear layers: what `merge_method: regmean` merges by.

    G = X^T X / (number of tokens), with a row of X for each token of the texts, prompts among them. The file has one
    float32 matrix (in x in) for each linear layer but the output layer, under the name of its weight in MODEL's
    checkpoint; layers that read the very same tensor (q, k and v; gate and up) share the one of the first. It takes 22
    GB for a Llama of 7B, in memory too. NAME.untax.json beside it is its manifest.

    MODEL is a folder, a hub id, or BASE+ADAPTER: the model as it was fine-tuned. Use texts of its own training data.

    Rows without the column text but with instruction, input and output give the Alpaca prompt and the output. Blank
    texts do not count. The same seed takes the same texts, and for more samples some more. Nothing is written before
    the end.
    """
    quieten()
    from untax.fisher.gram import gram
    from untax.fisher.inputs import Reading

    texts_of = named_data(data, column, separator)
    check_first(out, texts_of, device, force=force)
    made = gram(
        named_model(model),
        texts_of,
        out,
        Reading(**reading),
        device=device,
        trust_remote_code=trust_remote_code,
        force=force,
        say=click.echo,
        progress=partial(progress, "gram"),
    )
    click.echo(
        f"{made.path}: {made.layers} layers, {made.grams} matrices; {made.samples} texts, {made.tokens:,} tokens"
    )
