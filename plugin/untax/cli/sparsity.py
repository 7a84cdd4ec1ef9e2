"""``untax sparsity``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from untax.adapters.norms import SPARSITY_THRESHOLD
from untax.adapters.sparsity import RELATIVE_THRESHOLD, Thresholds
from untax.cli.picture import check_picture
from untax.errors import UntaxError

if TYPE_CHECKING:
    from untax.adapters.base import StoredModel
    from untax.adapters.lora_deltas import AdapterDeltas
    from untax.adapters.model_deltas import ModelDeltas
    from untax.report.sparsity import Measured

    Deltas = AdapterDeltas | ModelDeltas

PROGRESS_ELEMENTS = 1 << 30
"""From so many elements on, some seconds' work, there is a progress bar."""


def _above_zero(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise click.BadParameter("must be a number above zero.")
    return value


@click.command("sparsity", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER...", type=click.Path(path_type=Path))
@click.option("--base", metavar="MODEL", help="The base: a folder or, if the hub's cache has it, a hub id.")
@click.option("--no-base", is_flag=True, help="Leave out what is relative to the base, and do not read it.")
@click.option(
    "--threshold",
    type=float,
    callback=_above_zero,
    default=SPARSITY_THRESHOLD,
    show_default=True,
    help="What |delta| must be below.",
)
@click.option(
    "--relative",
    type=float,
    callback=_above_zero,
    default=RELATIVE_THRESHOLD,
    show_default=True,
    help="The same in units of the RMS of the base's tensor.",
)
@click.option("--blocks", is_flag=True, help="Show every decoder layer.")
@click.option("--layers", is_flag=True, help="Show every adapted module.")
@click.option("--json", "json_file", metavar="FILE", type=click.Path(path_type=Path), help="Write all numbers.")
@click.option("--plot", metavar="FILE.png|svg", type=click.Path(path_type=Path), help="Draw the shares as bars.")
def command(
    adapters: tuple[Path, ...],
    base: str | None,
    no_base: bool,
    threshold: float,
    relative: float,
    blocks: bool,
    layers: bool,
    json_file: Path | None,
    plot: Path | None,
) -> None:
    """Measure how much of each ADAPTER's delta is near zero: figure 2 of the PAFT paper.

    The delta of a LoRA adapter is s*B@A, with s from its configuration. Shares are shown per module type, averaged over
    the layers as in the paper and over all elements; --json has every layer. What is small depends on the weights that
    are changed, so shares below a multiple of the RMS of the base's tensor stand beside them, if the base is on this
    machine: nothing is downloaded.

    ADAPTER may also be a whole model: its delta is the difference from --base, which is needed then. What was too small
    to change a weight in the model's dtype is an exact zero in it.
    """
    _refuse_options(base, no_base, plot)
    thresholds = Thresholds(threshold, relative)
    deltas = _open(adapters, base, no_base)
    found = _measure(_names(adapters), deltas, thresholds, digests=json_file is not None)
    from untax.report.sparsity import sparsity_json, sparsity_text

    click.echo(sparsity_text(found, thresholds, layers=layers, blocks=blocks))
    _say_gaps(found, deltas)
    if json_file is not None:
        import json

        from untax.files import write_text

        write_text(json_file, json.dumps(sparsity_json(found, thresholds), indent=2) + "\n")
        click.echo(f"{json_file}: all numbers")
    if plot is not None:
        from untax.report.sparsity_figure import draw_sparsity

        draw_sparsity(plot, found, thresholds)
        click.echo(f"{plot}: drawn")


def _refuse_options(base: str | None, no_base: bool, plot: Path | None) -> None:
    if base is not None and no_base:
        raise click.UsageError("--base and --no-base exclude each other.")
    check_picture(plot, "--plot")


def _open(adapters: tuple[Path, ...], base: str | None, no_base: bool) -> list[Deltas]:
    """Everything is opened and checked before the first is measured, which may take minutes."""
    opened: dict[Path, StoredModel] = {}
    given = None if base is None else _given_base(base)
    return [_open_one(adapter, given, no_base, opened) for adapter in adapters]


def _open_one(folder: Path, given: StoredModel | None, no_base: bool, opened: dict[Path, StoredModel]) -> Deltas:
    from untax.adapters.base import StoredModel, own_base
    from untax.adapters.lora_deltas import AdapterDeltas
    from untax.adapters.model_deltas import ModelDeltas, is_whole_model
    from untax.adapters.stored import StoredAdapter

    if is_whole_model(folder):
        if given is None:
            raise UntaxError(
                "This is a whole model: what was changed in it can only be told beside its base.",
                where=folder,
                fix="Name the base with --base MODEL.",
            )
        return ModelDeltas(StoredModel(folder), given)
    adapter = StoredAdapter(folder)
    if given is not None:
        return AdapterDeltas(adapter, given)
    if no_base:
        return AdapterDeltas(adapter, no_relative="")
    return AdapterDeltas(adapter, *own_base(adapter.config, opened))


def _given_base(name: str) -> StoredModel:
    from untax.adapters.base import StoredModel, local_folder

    folder = local_folder(name)
    if folder is None:
        raise UntaxError(
            "There is no such base: it is no folder, and the hub's cache does not have it.",
            where=f"--base {name}",
            fix="Check the path, or fetch the model first: hf download MODEL.",
        )
    return StoredModel(folder)


def _measure(names: list[str], deltas: list[Deltas], thresholds: Thresholds, *, digests: bool) -> list[Measured]:
    import sys

    from tqdm import tqdm

    from untax.report.sparsity import Measured

    total = sum(one.elements for one in deltas)
    with tqdm(
        total=total,
        desc="Measuring",
        unit=" elements",
        unit_scale=True,
        disable=total < PROGRESS_ELEMENTS,
        mininterval=0.5 if sys.stderr.isatty() else 15.0,
    ) as bar:
        return [
            Measured(name, one.measure(thresholds, bar.update), _about(one) if digests else {})
            for name, one in zip(names, deltas, strict=True)
        ]


def _about(one: Deltas) -> dict[str, object]:
    base = None if one.base is None else {"folder": str(one.base.folder), "identity": one.base.identity}
    return {
        "folder": str(one.folder),
        "kind": one.kind,
        "digest": one.identity,
        "base": base,
        "no_relative": one.no_relative,
        "not_counted": list(one.not_counted),
    }


def _names(adapters: tuple[Path, ...]) -> list[str]:
    """The folders' names; where two are equal, the paths."""
    names = [adapter.resolve().name for adapter in adapters]
    return names if len(set(names)) == len(names) else [str(adapter) for adapter in adapters]


def _say_gaps(found: list[Measured], deltas: list[Deltas]) -> None:
    """What the table lacks, and why."""
    reasons: dict[str, list[str]] = {}
    for measured, one in zip(found, deltas, strict=True):
        if one.no_relative:
            reasons.setdefault(one.no_relative, []).append(measured.name)
        if one.not_counted:
            rest = len(one.not_counted) - 3
            more = f" and {rest} more" if rest > 0 else ""
            click.echo(
                f"{measured.name}: not counted, trained beside the factors: {', '.join(one.not_counted[:3])}{more}"
            )
    for reason, names in reasons.items():
        click.echo(f"{', '.join(names)}: nothing relative to the base: {reason}; --base MODEL names one")
