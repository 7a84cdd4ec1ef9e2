"""``untax disperse``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("disperse")
@click.argument("config", type=click.Path(path_type=Path))
def command(config: Path) -> None:
    """Split the corpus of an Axolotl YAML into clusters, as its disperse_* keys say.

    Makes the assignment at `disperse_assignment`, or checks the one that is there. Paths are taken from the present
    folder, as Axolotl does.
    """
    from untax.disperse.command import disperse

    click.echo(disperse(config))
