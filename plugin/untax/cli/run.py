"""``untax run``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from untax.run.folder import Options

GIB = 2**30


@click.command("run", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, metavar="NODE", help="Run these nodes alone, such as `score-*`. Repeatable.")
@click.option("--from", "start", multiple=True, metavar="NODE", help="Run these nodes and all that need them.")
@click.option("--until", multiple=True, metavar="NODE", help="Run these nodes and all that they need.")
@click.option(
    "--keep-going/--no-keep-going",
    default=True,
    show_default=True,
    help="After a failure, still start the nodes that do not need the failed one.",
)
@click.option(
    "--rerun-on",
    type=click.Choice(["version"]),
    help="Also run again what other versions of its packages made.",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Nodes at a time (default: one per GPU, or per core).")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each node (default: 1 on a CPU).")
@click.option("--gpus", metavar="IDS", help="GPUs to use, such as `0,1` (default: all that can be seen).")
@click.option(
    "--memory",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GIB",
    help="Main memory to use (default: nine tenths of what there is).",
)
@click.option(
    "--warm/--no-warm",
    default=True,
    show_default=True,
    help="On a CPU, fork commands from processes that have imported their packages, instead of starting each anew.",
)
@click.option(
    "--on-finish",
    metavar="COMMAND",
    help="Run this shell command at the end, with UNTAX_STATUS (done, failed, interrupted), UNTAX_FOLDER and "
    "UNTAX_FAILED.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="This machine, or a Ray cluster on a shared file system (docs/running.md).",
)
@click.option("--ray-address", metavar="ADDRESS", help="Of the Ray cluster (default: what RAY_ADDRESS or Ray finds).")
@click.option(
    "--ray-wait",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Wait so long for machines that nodes need and that have not joined the Ray cluster yet.",
)
@click.option("--dry-run", is_flag=True, help="Say what would run and why, and run nothing.")
def command(
    folder: Path,
    only: tuple[str, ...],
    start: tuple[str, ...],
    until: tuple[str, ...],
    keep_going: bool,
    rerun_on: str | None,
    jobs: int | None,
    threads: int | None,
    gpus: str | None,
    memory: float | None,
    warm: bool,
    on_finish: str | None,
    engine: str,
    ray_address: str | None,
    ray_wait: float,
    dry_run: bool,
) -> None:
    """Run a run folder: disperse, train, merge and score what is not finished yet.

    A second call continues where the first one stopped. Every node is an ordinary command that is printed and can be
    typed by hand. `untax status` shows how far a folder is.
    """
    from untax.report.arms import format_table
    from untax.run.folder import ARMS_FILE, Options, run_folder
    from untax.run.selection import Selection

    options = Options(
        jobs=jobs,
        threads=threads,
        gpus=_ids(gpus),
        memory=None if memory is None else int(memory * GIB),
        selection=Selection(only, start, until),
        keep_going=keep_going,
        rerun_on_version=rerun_on == "version",
        warm=warm,
        on_finish=on_finish,
        engine=engine,
        ray_address=ray_address,
        ray_wait=ray_wait,
    )
    if dry_run:
        _show_plan(folder, options)
        return
    rows = run_folder(folder, options)
    if rows:
        click.echo(f"\n{format_table(rows)}\n\nThe numbers: {folder / ARMS_FILE}")


def _ids(gpus: str | None) -> tuple[str, ...] | None:
    if gpus is None:
        return None
    ids = tuple(part.strip() for part in gpus.split(",") if part.strip())
    if not ids or len(set(ids)) < len(ids):
        raise click.BadParameter("name each GPU once, such as 0,1", param_hint="--gpus")
    return ids


def _show_plan(folder: Path, options: Options) -> None:
    from untax.recipes.plan import plan
    from untax.recipes.spec import SPEC_NAME, read_spec
    from untax.run.folder import selected
    from untax.run.preflight import check_files, edited, edited_note
    from untax.run.resources import check_gpus, resources
    from untax.run.todo import todo

    spec = read_spec(folder / SPEC_NAME)
    expanded = plan(spec)
    check_files(expanded, folder, spec.suite)
    names = edited(expanded, folder)
    if names:
        click.echo(edited_note(names))
    nodes = selected(expanded, folder, spec, options)
    limits = resources(spec.device, jobs=options.jobs, threads=options.threads, gpus=options.gpus)
    if options.engine == "local":
        check_gpus(nodes, limits)
    chosen = {node.name for node in nodes}
    due = [
        one
        for one in todo(expanded, folder, spec.suite, rerun_on_version=options.rerun_on_version)
        if one.node.name in chosen
    ]
    for one in due:
        click.echo(f"{one.node.name}: {shlex.join(one.node.command)}   ({one.reason})")
    maybe = sum(not one.certain for one in due)
    more = f", {maybe} more if what they read changes" if maybe else ""
    click.echo(f"{len(due) - maybe} of {len(chosen)} nodes would run{more}.")
