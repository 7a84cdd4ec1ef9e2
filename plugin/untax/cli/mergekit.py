"""``untax mergekit``."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("mergekit", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Teach the plain mergekit-yaml of this environment what untax adds, or stop it.

    Once enabled, mergekit-yaml knows the merge methods of untax and of its plugins, and reads base+adapter without
    merged copies (and so without --lora-merge-cache). `untax merge` needs none of this.
    """


@command.command()
def enable() -> None:
    """Write one small file into this environment's site-packages; at its start Python only looks out for mergekit."""
    from untax.merge import hook_file

    found = hook_file.enable()
    if found.is_own:
        click.echo(f"Enabled already: {found.path}")
        return
    if found.source is not None:
        click.echo(f"It was enabled from another untax: {found.source}")
    click.echo(f"Wrote {found.path}")
    click.echo("mergekit-yaml now knows the merge methods of untax. `untax mergekit disable` removes the file.")
    _tell_version()


@command.command()
def disable() -> None:
    """Remove that file."""
    from untax.merge import hook_file

    found = hook_file.disable()
    click.echo(f"Removed {found.path}" if found.source is not None else f"Disabled already: there is no {found.path}")


@command.command()
def status() -> None:
    """Say whether it is enabled, from where, and whether this mergekit is the one that untax knows."""
    from untax.merge import hook_file

    found = hook_file.find()
    if found.source is None:
        click.echo(f"disabled: there is no {found.path}")
    elif found.is_own:
        click.echo(f"enabled: {found.path}")
    else:
        click.echo(f"enabled from another untax: {found.path} runs {found.source}{_if_gone(found.source)}")
    _tell_version()


def _if_gone(source: Path) -> str:
    return "" if source.is_file() else ", which is not there any more, so it does nothing"


def _tell_version() -> None:
    from importlib.metadata import PackageNotFoundError, version

    from untax.merge.import_hook import SUPPORTED

    try:
        found = version("mergekit")
    except PackageNotFoundError:
        click.echo(f"Warning: mergekit is not installed here; untax knows {SUPPORTED}.")
        return
    if found == SUPPORTED:
        click.echo(f"mergekit {found}: supported")
    else:
        click.echo(f"Warning: this is mergekit {found}, and untax knows {SUPPORTED}: mergekit-yaml runs without untax.")
