"""``untax check``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from untax.cli.model_on_texts import quieten

if TYPE_CHECKING:
    from untax.check.check import Report
    from untax.check.estimate import Estimate

GB = 1e9
STATES = ("fail", "note", "unknown", "ok")
"""Of findings, the gravest first."""


@click.command("check", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option("--offline", is_flag=True, help="Do not ask the hub whether models and datasets are there.")
@click.option(
    "--rows",
    default=1000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Rows of each dataset to look at; all of them where there are no more.",
)
def command(folder: Path, as_json: bool, offline: bool, rows: int) -> None:
    """Say what is wrong with a run folder, and what it will cost, before anything runs.

    FOLDER has an untax.yaml; its YAMLs are read as they stand, those edited by hand too. Looked at are paths, names of
    the hub, columns and answers of the datasets, chat templates, the lengths of rows in tokens (by Axolotl's own
    tokenisation), steps, and what would run. GPU memory, hours and disk are estimated by arithmetic.

    Nothing is downloaded and nothing in FOLDER is changed. Exit code 2 if anything would fail, else 0.
    """
    quieten()
    from untax.check.check import Report, check_folder
    from untax.check.findings import Finding
    from untax.errors import UntaxError

    try:
        report = check_folder(
            folder, offline=offline, rows=rows, say=lambda line: click.echo(f"  {line} ...", err=True)
        )
    except UntaxError as error:
        if not as_json:
            raise
        report = Report([Finding("fail", error.where or str(folder), error.problem, error.fix or "")])
    if as_json:
        click.echo(json.dumps(as_plain(report), indent=2))
    else:
        for line in lines(report):
            click.echo(line)
    if report.failed:
        raise click.exceptions.Exit(2)


def as_plain(report: Report) -> dict[str, Any]:
    """The report as plain values; sizes in bytes, and totals beside the parts."""
    plain = dataclasses.asdict(report)
    for made, training in zip(plain["trainings"], report.trainings, strict=True):
        if training.memory is not None:
            made["memory"]["total"] = training.memory.total
        if training.lengths is not None:
            made["lengths"]["quantiles"] = {f"{key:g}": value for key, value in training.lengths.quantiles.items()}
            made["lengths"]["kept"] = training.lengths.kept
    if report.disk is not None:
        plain["disk"]["total"] = report.disk.total
    plain["due"] = [{"node": node, "reason": reason} for node, reason in report.due]
    return {"failed": report.failed, **plain}


def lines(report: Report) -> Iterator[str]:
    """The report as text, a section after the other."""
    yield "Checks"
    for finding in sorted(report.findings, key=lambda finding: STATES.index(finding.state)):
        yield f"  {finding.state:8}{finding.where}: {finding.text}"
        if finding.fix:
            yield f"  {'':8}-> {finding.fix}"
    yield from _data(report)
    yield from _costs(report)
    yield from _plan(report)
    states: list[str] = [finding.state for finding in report.findings]
    counts = ", ".join(f"{states.count(state)} {state}" for state in STATES)
    yield f"\n{counts}" + (": this run would fail" if report.failed else "")


def _data(report: Report) -> Iterator[str]:
    measured = [training for training in report.trainings if training.lengths is not None]
    if not measured:
        return
    head = ("rows", "half", "90%", "99%", "longest", "limit", "too long", "tokens/epoch", "steps", "warm-up")
    yield "\nRows in tokens"
    yield from _table(head, [(training.name, _lengths(training)) for training in measured])


def _lengths(training: Estimate) -> tuple[str, ...]:
    lengths = training.lengths
    if lengths is None:
        return ()
    steps = [training.steps, training.warmup]
    quantiles = [f"{value}" for value in lengths.quantiles.values()]
    share = f"{lengths.too_long:.1%} {lengths.strategy}" if lengths.too_long else "0"
    return (
        *(f"{lengths.rows:,}", *quantiles, f"{lengths.longest}", f"{lengths.limit}", share, f"{lengths.tokens:,}"),
        *(f"{value:,}" for value in steps if value is not None),
    )


def _costs(report: Report) -> Iterator[str]:
    known = [training for training in report.trainings if training.memory is not None]
    if known:
        yield "\nMemory and hours (estimates: docs/check.md says how)"
        head = ("memory", "weights", "trained", "step", "hours")
        yield from _table(head, [(training.name, _cost(training)) for training in known])
    if report.gpus:
        yield "  GPUs here: " + ", ".join(f"{gpu.name} ({gpu.memory / GB:.0f} GB)" for gpu in report.gpus)
    if report.disk is not None:
        parts = [(name, size) for name, size in dataclasses.asdict(report.disk).items() if size]
        listed = ", ".join(f"{name.replace('_', ' ')} {_size(size)}" for name, size in parts)
        yield f"\nDisk: {_size(report.disk.total)} still to be written" + (f" ({listed})" if listed else "")


def _cost(training: Estimate) -> tuple[str, ...]:
    memory = training.memory
    if memory is None:
        return ()
    trained = memory.adapter + memory.gradients + memory.optimizer
    hours = ", ".join(f"{value:.2g} on {gpus(training)}{name}" for name, value in (training.hours or {}).items())
    return (_size(memory.total), _size(memory.weights + memory.reference), _size(trained), _size(memory.step), hours)


def gpus(training: Estimate) -> str:
    """How many GPUs a training runs on, before their name."""
    return f"{training.gpus} x " if training.gpus > 1 else ""


def _plan(report: Report) -> Iterator[str]:
    yield f"\nWhat would run: {len(report.due)} of {report.nodes} nodes"
    for node, reason in report.due:
        yield f"  {node}: {reason}"


def _table(head: tuple[str, ...], rows: list[tuple[str, tuple[str, ...]]]) -> Iterator[str]:
    """Right-aligned columns behind the names."""
    cells = [("", head), *((name, (*row, *[""] * (len(head) - len(row)))) for name, row in rows)]
    first = max(len(name) for name, _ in cells)
    widths = [max(len(row[index]) for _, row in cells) for index in range(len(head))]
    for name, row in cells:
        columns = "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        yield f"  {name:{first}}  {columns}".rstrip()


def _size(count: int) -> str:
    return f"{count / GB:.1f} GB" if count >= GB / 10 else f"{count / 1e6:.1f} MB"
