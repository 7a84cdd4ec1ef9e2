"""``untax disperse``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from untax.errors import UntaxError

if TYPE_CHECKING:
    from untax.disperse.assignment import Assignment


@click.command("disperse")
@click.argument("config", type=click.Path(path_type=Path))
def command(config: Path) -> None:
    """Make the assignment that the Axolotl YAML CONFIG asks for, or verify the one that is there.

    Reads the keys datasets and disperse_*; disperse_cluster is not needed. Paths start in the present folder, as they
    do for `axolotl train`, which makes the same assignment itself if this was not run before.
    """
    from untax.disperse.settings import read_settings
    from untax.training.keys import check_plugins

    cfg = _load(config)
    settings = read_settings(cfg, where=config, cluster_needed=False)
    if not settings.active:
        raise UntaxError(
            "The configuration asks for no dispersal.", where=config, fix="Set disperse_clusters: 4, for example."
        )
    check_plugins(cfg, where=config)
    _quieten()
    from untax.data.corpus import read_corpus
    from untax.disperse.assignment import assignment_path, obtain

    corpus = read_corpus(cfg)
    assignment = obtain(corpus, settings, assignment_path(cfg, settings, corpus))
    _show(assignment)


def _load(config: Path) -> dict[str, Any]:
    import yaml

    try:
        cfg = yaml.safe_load(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise UntaxError(
            f"The configuration cannot be read: {error.strerror}.",
            where=config,
            fix=f"Name an Axolotl YAML that is there; relative paths start in {Path.cwd()}.",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UntaxError(f"The configuration is no YAML: {error}", where=config, fix="Correct the line.") from error
    if not isinstance(cfg, dict):
        raise UntaxError("The configuration is no mapping of keys.", where=config, fix="Give an Axolotl YAML.")
    return cfg


def _quieten() -> None:
    """Axolotl's imports talk of GPUs and kernels that a dispersal does not use."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    from datasets import disable_progress_bars

    disable_progress_bars()


def _show(assignment: Assignment) -> None:
    section = assignment.section
    state = "made" if assignment.made else "already made, unchanged"
    click.echo(f"{assignment.path}: {state}")
    click.echo(f"{section['rows']} rows, corpus {section['corpus']}, {section['strategy']}, seed {section['seed']}")
    if section["rows_without_first_turn"]:
        click.echo(f"{section['rows_without_first_turn']} rows have no complete first turn and are left out")
    clusters = [f"cluster {index}" for index in range(section["clusters"])]
    table = [["source", *clusters, "all"]]
    table += [[name, *map(str, sizes), str(sum(sizes))] for name, sizes in section["sources"].items()]
    if len(section["sources"]) > 1:
        table.append(["all", *map(str, section["sizes"]), str(sum(section["sizes"]))])
    click.echo("\n" + _aligned(table))


def _aligned(table: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in table
    )
