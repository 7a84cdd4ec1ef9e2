"""``untax plugins``."""

from __future__ import annotations

import click


@click.command("plugins", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """List the hooks of untax, who implements them, and what they registered."""
    from untax.plugins import hook_names, manager

    for hook in hook_names():
        caller = getattr(manager().hook, hook)
        click.echo(f"{hook}  {(caller.spec.function.__doc__ or '').splitlines()[0]}")
        for implementation in caller.get_hookimpls():
            provided = implementation.function()
            module = implementation.function.__module__
            click.echo(f"    {implementation.plugin_name} ({module}): {', '.join(sorted(provided)) or 'nothing'}")
