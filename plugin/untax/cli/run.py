"""``untax run``."""

from __future__ import annotations

import shlex
from pathlib import Path

import click


@click.command("run", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--jobs", type=click.IntRange(min=1), help="Commands at a time (default: one per GPU, or per core).")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each command (default: 1 on a CPU).")
@click.option("--dry-run", is_flag=True, help="Say what would run and why, and run nothing.")
def command(folder: Path, jobs: int | None, threads: int | None, dry_run: bool) -> None:
    """Run a run folder: disperse, train, merge and score what is not finished yet.

    A second call continues where the first one stopped. Every step is an ordinary command that is printed and can be
    typed by hand.
    """
    from untax.report.arms import format_table
    from untax.run.folder import ARMS_FILE, run_folder

    if dry_run:
        _show_plan(folder)
        return
    rows = run_folder(folder, jobs=jobs, threads=threads)
    if rows:
        click.echo(f"\n{format_table(rows)}\n\nThe numbers: {folder / ARMS_FILE}")


def _show_plan(folder: Path) -> None:
    from untax.recipes.plan import plan
    from untax.recipes.spec import SPEC_NAME, read_spec
    from untax.run.folder import check_files, edited, edited_note, todo

    spec = read_spec(folder / SPEC_NAME)
    expanded = plan(spec)
    check_files(expanded, folder, spec.suite)
    names = edited(expanded, folder)
    if names:
        click.echo(edited_note(names))
    commands = {node.name: shlex.join(node.command) for node in expanded.nodes}
    due = todo(expanded, folder, spec.suite)
    for name, reason in due:
        click.echo(f"{name}: {commands[name]}   ({reason})")
    click.echo(f"{len(due)} of {len(expanded.nodes)} nodes would run.")
