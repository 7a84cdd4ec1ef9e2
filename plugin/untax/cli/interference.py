"""``untax interference``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from untax.adapters.interference import TOP
from untax.cli.picture import check_picture

if TYPE_CHECKING:
    from untax.adapters.adapter_set import AdapterSet
    from untax.adapters.interference import LayerInterference


PROGRESS_ELEMENTS = 1 << 29
"""From so many elements on, some seconds' work, there is a progress bar."""


def _share(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if not 0 < value < 1:
        raise click.BadParameter("must be a share between 0 and 1.")
    return value


@click.command("interference", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER ADAPTER...", type=click.Path(path_type=Path))
@click.option(
    "--top",
    type=float,
    callback=_share,
    default=TOP,
    show_default=True,
    help="The share of a layer's elements that counts as its largest.",
)
@click.option("--layers", is_flag=True, help="Show every layer instead of those that conflict most.")
@click.option("--json", "json_file", metavar="FILE", type=click.Path(path_type=Path), help="Write all numbers.")
@click.option(
    "--figure", metavar="FILE.png|svg", type=click.Path(path_type=Path), help="Draw the measures, layer by layer."
)
def command(adapters: tuple[Path, ...], top: float, layers: bool, json_file: Path | None, figure: Path | None) -> None:
    """Measure how much LoRA adapters of one base get in each other's way, before they are merged.

    For each pair of adapters and of their deltas s*B@A, per layer and over all layers: the cosine; the share of
    magnitude at elements whose signs differ; and how many of the largest elements of the one are among those of the
    other. For each adapter: its norm, and the share of its own magnitude that electing signs, as TIES does, would drop.

    The base is not needed. A pair is measured over the layers that both adapters change.
    """
    check_picture(figure, "--figure")
    from untax.adapters.adapter_set import AdapterSet
    from untax.report.interference import Interference, interference_json, interference_text

    opened = AdapterSet(adapters)
    about = _about(opened) if json_file is not None else ()
    found = Interference(_names(adapters), _measure(opened, top), top, about)
    _say_notes(found.names, opened)
    click.echo(interference_text(found, layers=layers))
    if json_file is not None:
        import json

        from untax.files import write_text

        write_text(json_file, json.dumps(interference_json(found), indent=2) + "\n")
        click.echo(f"{json_file}: all numbers")
    if figure is not None:
        from untax.report.interference_figure import draw_interference

        draw_interference(figure, found)
        click.echo(f"{figure}: drawn")


def _measure(opened: AdapterSet, top: float) -> tuple[LayerInterference, ...]:
    import sys

    from tqdm import tqdm

    with tqdm(
        total=opened.elements,
        desc="Measuring",
        unit=" elements",
        unit_scale=True,
        disable=opened.elements < PROGRESS_ELEMENTS,
        mininterval=0.5 if sys.stderr.isatty() else 15.0,
    ) as bar:
        return opened.measure(top, bar.update)


def _about(opened: AdapterSet) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"folder": str(one.folder), "digest": one.identity, "not_counted": list(one.not_counted)}
        for one in opened.adapters
    )


def _names(adapters: tuple[Path, ...]) -> tuple[str, ...]:
    """The folders' names; where two are equal, the paths."""
    names = tuple(adapter.resolve().name for adapter in adapters)
    return names if len(set(names)) == len(names) else tuple(map(str, adapters))


def _say_notes(names: tuple[str, ...], opened: AdapterSet) -> None:
    """What may make the numbers worthless comes before them."""
    for note in opened.notes:
        click.echo(f"Note: {note}")
    for name, one in zip(names, opened.adapters, strict=True):
        if one.not_counted:
            rest = len(one.not_counted) - 3
            more = f" and {rest} more" if rest > 0 else ""
            click.echo(f"{name}: not counted, trained beside the factors: {', '.join(one.not_counted[:3])}{more}")
    if opened.notes or any(one.not_counted for one in opened.adapters):
        click.echo()
