"""``untax demo``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("demo", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("untax-demo"), show_default=True, help="The run folder."
)
@click.option("--jobs", type=click.IntRange(min=1), help="Commands at a time (default: one per core).")
def command(out: Path, jobs: int | None) -> None:
    """The whole job on a bundled model: train every arm, merge, score, and show what each one cost.

    Called again on an unfinished folder it continues; on a finished one it shows the result at once.
    """
    from untax.demo.demo import prepare
    from untax.demo.summary import summary
    from untax.run.folder import Options, run_folder

    prepare(out)
    click.echo(summary(out, run_folder(out, Options(jobs=jobs)) or []))
