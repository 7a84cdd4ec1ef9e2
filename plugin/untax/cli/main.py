"""``untax``: finds the command's file, imports that one only, and prints errors plainly."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import click

from untax import __version__
from untax.errors import UntaxError
from untax.files import disk_error

# name -> one line for --help; the module is untax.cli.<name>, its click command `command`.
COMMANDS = {
    "demo": "The whole job on a bundled 260k-parameter model, on a CPU, in minutes.",
    "recipe": "Write a run folder: Axolotl and mergekit YAMLs for DTM or PAFT.",
    "check": "Say what is wrong with a run folder and what it will cost, before anything runs.",
    "disperse": "Split a corpus into clusters, as an Axolotl YAML says.",
    "interference": "Measure how much adapters get in each other's way, before merging them.",
    "merge": "Merge models and adapters: mergekit-yaml's arguments and options.",
    "mergekit": "Make plain mergekit-yaml know untax's methods and adapter reader, or undo it.",
    "sparsity": "Measure how much of an adapter's delta is near zero (PAFT's figure 2).",
    "replay": "Sample pretraining texts as rows for Axolotl, to be mixed into instruction data.",
    "fisher": "Estimate the diagonal Fisher information of a model's weights.",
    "gram": "Estimate the inner products of the inputs of a model's linear layers, for RegMean.",
    "eval": "Score models with lm-eval.",
    "run": "Run a run folder: disperse, train, merge and score what is not done yet.",
    "status": "Say which nodes of a run folder are finished, which are not, and what each took.",
    "plugins": "List the hooks and who implements them.",
    "doctor": "Say what of this environment is ready, and how to mend what is not.",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, so that ``untax --help`` is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All command names, in the order of the help page."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"untax.cli.{cmd_name}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest near names for a command that does not exist."""
        from untax.errors import near_names

        name = click.utils.make_str(args[0])
        if name not in COMMANDS and not name.startswith("-"):
            raise UntaxError(f"There is no command '{name}'. {near_names(name, list(COMMANDS))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command list without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="untax")
def cli(debug: bool) -> None:
    """Instruction tuning without the alignment tax: Disperse-Then-Merge and PAFT for Axolotl, mergekit and lm-eval."""
    if debug:
        os.environ["UNTAX_DEBUG"] = "1"


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 an error to mend, 130 interrupted."""
    try:
        # Without standalone mode click returns the code of an Exit instead of ending with it.
        code = cli.main(standalone_mode=False)
    except UntaxError as error:
        _fail(error)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("untax: interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except Exception as error:
        _fail_unexpected(error)
    if code:
        sys.exit(code)


def _fail_unexpected(error: Exception) -> NoReturn:
    """What untax did not foresee: what the file system says, or else a bug, plainly."""
    if isinstance(error, OSError):
        _fail(disk_error(error, Path(error.filename or Path.cwd())))
    if os.environ.get("UNTAX_DEBUG"):
        traceback.print_exception(error)
    click.echo(f"untax: error: unexpected {type(error).__name__}: {error}", err=True)
    click.echo("  fix:   This is a bug of untax: please report it with what `untax --debug ...` prints.", err=True)
    sys.exit(1)


def _fail(error: UntaxError) -> NoReturn:
    if os.environ.get("UNTAX_DEBUG"):
        traceback.print_exception(error)
    else:
        click.echo(f"untax: error: {error}", err=True)
    sys.exit(2)
