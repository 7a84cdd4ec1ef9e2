"""``untax status``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("status", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print all that is known as JSON.")
@click.option(
    "--rerun-on", type=click.Choice(["version"]), help="Count what other package versions made as not finished."
)
def command(folder: Path, as_json: bool, rerun_on: str | None) -> None:
    """Say which nodes of a run folder are finished, which are not and why, and what each took.

    Nothing is changed; a run that is under way goes on, and how far it is is shown.
    """
    import json

    from untax.run.status import folder_status, format_status

    status = folder_status(folder, rerun_on_version=rerun_on == "version")
    if as_json:
        click.echo(json.dumps(status.content(), indent=2, ensure_ascii=False))
    else:
        click.echo(format_status(status))
