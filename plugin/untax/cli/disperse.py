"""``untax disperse``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from untax.errors import UntaxError

if TYPE_CHECKING:
    from untax.data.corpus import Corpus
    from untax.disperse.settings import DisperseSettings

DATA_OPTIONS = {
    "clusters": "disperse_clusters",
    "strategy": "disperse_strategy",
    "seed": "disperse_seed",
    "balanced": "disperse_balanced",
    "text": "disperse_text",
    "embedder": "disperse_embedder",
    "column": "disperse_column",
    "first_turn": "disperse_first_turn",
    "out": "disperse_assignment",
    "cache": "dataset_prepared_path",
    "type": "type",
    "split": "split",
    "name": "name",
}
"""Options for bare data -> the key that says the same in an Axolotl YAML; the last three belong to its datasets."""
ENTRY_KEYS = ("type", "split", "name")


def _index_and_count(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """``I/N``: shard I, counted from 0, of N."""
    if value is None:
        return None
    first, _, second = value.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 0 <= int(first) < int(second)):
        raise click.BadParameter(f"{value!r} is no shard: for 4 shards give 0/4, 1/4, 2/4 and 3/4.")
    return int(first), int(second)


@click.command("disperse", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("target", nargs=-1, required=True, metavar="CONFIG.yaml | DATA...")
@click.option("-k", "--clusters", type=int, help="Data: K, the number of clusters.")
@click.option("-o", "--out", help="Data: the folder, or .parquet file, of the assignment.")
@click.option("--strategy", help="Data: random (default), kmeans, column, or a plugin's.")
@click.option("--seed", type=int, help="Data: seed of the dispersal.  [default: 42]")
@click.option("--balanced", is_flag=True, default=None, help="Data, random: sizes that differ by at most one.")
@click.option("--text", help="Data, kmeans: embed the instruction, the response (default) or both.")
@click.option("--embedder", help="Data, kmeans: tfidf (default), sentence-transformers:MODEL, llm:MODEL, ...")
@click.option("--column", help="Data, column: the column whose values stay together.  [default: source]")
@click.option("--first-turn", is_flag=True, default=None, help="Data: cut dialogues to their first turn.")
@click.option("--type", help="Data: Axolotl's dataset type, if the columns' names do not tell.")
@click.option("--split", help="Data: the split to read.")
@click.option("--name", help="Data: the dataset's configuration on the hub.")
@click.option("--cache", help="Data: where vectors are kept for later.  [default: last_run_prepared]")
@click.option(
    "--shard",
    metavar="I/N",
    callback=_index_and_count,
    help="Only do the costly part for shard I of N, counted from 0.",
)
@click.option("--gather", is_flag=True, help="Make the assignment from what the shards did.")
@click.option("--explain", type=int, metavar="ROW", help="Say why this row (from 0) is where it is.")
@click.option("--plot", is_flag=True, help="Save sizes, sources and a projection as PNGs beside the assignment.")
@click.option("--brief", is_flag=True, help="Show sizes only, not what is in the clusters.")
@click.option("--dry-run", is_flag=True, help="Read the data and say what would be done.")
@click.option("--processes", type=click.IntRange(1), help="How many processes may work.  [default: the cores]")
def command(target: tuple[str, ...], **options: Any) -> None:
    """Split a corpus into clusters, and show what is in them.

    With an Axolotl YAML: makes the assignment that its keys datasets and disperse_* ask for, or verifies the one that
    is there; disperse_cluster is not needed. Paths start in the present folder, as they do for `axolotl train`, which
    makes the same assignment itself if this was not run before.

    With data (files, folders or hub ids): -k and -o are needed, and the other options stand for the YAML's keys.
    """
    cfg, where = _configuration(target, options)
    if options["processes"]:
        cfg["dataset_num_proc"] = options["processes"]
    settings = _settings(cfg, where)
    _refuse_together(options)
    _quieten()
    from untax.data.mapped import mapped_files_given_back

    with mapped_files_given_back():
        _run(cfg, settings, options)


def _run(cfg: dict[str, Any], settings: DisperseSettings, options: dict[str, Any]) -> None:
    from untax.data.corpus import check_entries
    from untax.data.parallel import apart
    from untax.disperse.assignment import assignment_path, cache_folder, obtain
    from untax.disperse.explain import explain, refuse_row

    check_entries(cfg.get("datasets"))  # What is not there need not be looked for with Axolotl.
    # Reading takes Axolotl, whose import is most of what a dispersal would hold in memory.
    corpus, cache = apart(_read, cfg), cache_folder(cfg)
    if options["shard"]:
        _shard(corpus, settings, cache, *options["shard"])
        return
    if options["gather"]:
        from untax.disperse.shards import gathered

        corpus = gathered(corpus, cache)
    if options["explain"] is not None:
        refuse_row(corpus, options["explain"])
    path = assignment_path(cfg, settings, corpus)
    if options["dry_run"]:
        _say_plan(corpus, settings, path)
        return
    assignment = obtain(corpus, settings, path, cache)
    if options["explain"] is not None:
        if assignment.made:
            click.echo(f"{path}: made")
        click.echo("\n".join(explain(corpus, settings, assignment, options["explain"], cache)))
        return
    from untax.cli.dispersal_text import show

    show(corpus, settings, assignment, brief=options["brief"], plot=options["plot"])


def _read(cfg: dict[str, Any]) -> Corpus:
    """The rows; where nothing says what their columns mean, the columns' names do."""
    from untax.data.corpus import read_corpus
    from untax.data.mapped import mapped_files_given_back
    from untax.data.row_types import type_by_columns

    with mapped_files_given_back():
        corpus = read_corpus(cfg)
    for source in corpus.sources:
        if not source.entry.get("type") and (guessed := type_by_columns(source.rows.column_names)):
            source.entry["type"] = guessed
    return corpus


def _configuration(target: tuple[str, ...], options: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The Axolotl configuration that was named, or that the data and options amount to; and its name for messages."""
    given = [name for name in DATA_OPTIONS if options[name] is not None]
    yamls = [name for name in target if name.endswith((".yaml", ".yml"))]
    if not yamls:
        return _of_data(target, options), "the options of untax disperse"
    if len(target) > 1:
        raise UntaxError(
            f"An Axolotl YAML says itself which data it is about: {' '.join(target)}.",
            where="untax disperse",
            fix="Give one YAML alone, or data without a YAML.",
        )
    if given:
        typed = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UntaxError(
            f"With an Axolotl YAML its keys decide, not options: {typed}.",
            where=target[0],
            fix=f"Set {', '.join(DATA_OPTIONS[name] for name in given)} in the YAML.",
        )
    from untax.training.keys import check_plugins

    cfg = _load(Path(target[0]))
    check_plugins(cfg, where=target[0])
    return cfg, target[0]


def _of_data(paths: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    if options["out"] is None or options["clusters"] is None:
        raise UntaxError(
            "Bare data needs the number of clusters and a place for the assignment.",
            where=f"untax disperse {' '.join(paths)}",
            fix="Add -k 4 -o clusters/, for example.",
        )
    entry = {name: options[name] for name in ENTRY_KEYS if options[name] is not None}
    keys = {key: options[name] for name, key in DATA_OPTIONS.items() if name not in ENTRY_KEYS}
    given = {key: value for key, value in keys.items() if value is not None}
    return {"datasets": [{"path": path, **entry} for path in paths], **given}


def _settings(cfg: dict[str, Any], where: str) -> DisperseSettings:
    from untax.data.streamed import is_streamed
    from untax.disperse.settings import read_settings

    settings = read_settings(cfg, where=where, cluster_needed=False)
    if is_streamed(cfg):
        raise UntaxError(
            "Streamed rows need no assignment: each says itself which cluster it is in, as it is read.",
            where=where,
            fix="Train with it; or leave streaming (pretraining_dataset) out to have an assignment.",
        )
    if not settings.active:
        raise UntaxError(
            "The configuration asks for no dispersal.", where=where, fix="Set disperse_clusters: 4, for example."
        )
    return settings


def _refuse_together(options: dict[str, Any]) -> None:
    names = ("shard", "dry_run", "explain", "plot", "gather")
    first, *others = [name for name in names if options[name] not in (None, False)] or [""]
    # Each of the first three does one thing and nothing else; an assignment that is gathered may be explained or drawn.
    refused = [name for name in others if first in ("shard", "dry_run") or (first == "explain" and name == "plot")]
    if refused:
        typed = ["--" + name.replace("_", "-") for name in (first, *refused)]
        raise UntaxError(
            f"{typed[0]} does one thing and nothing else: leave out {' and '.join(typed[1:])}.",
            where="untax disperse",
            fix="Run the command once for each: first the shards, then --gather.",
        )


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
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    from datasets import disable_progress_bars

    disable_progress_bars()


def _shard(corpus: Corpus, settings: DisperseSettings, cache: Path, index: int, count: int) -> None:
    from untax.disperse.embed.store import BLOCK
    from untax.disperse.shards import make_shard

    rows = make_shard(corpus, settings, cache, index, count)
    if len(rows):
        said = f"rows {rows.start} to {rows.stop - 1} of {len(corpus)}, kept in {cache}"
    else:
        said = f"nothing to do: shards are whole blocks of {BLOCK} rows, too few for {count} shards"
    click.echo(f"shard {index}/{count}: {said}")


def _say_plan(corpus: Corpus, settings: DisperseSettings, path: Path) -> None:
    from untax.disperse.assignment import is_finished

    click.echo(f"{len(corpus)} rows: " + ", ".join(f"{source.name} {len(source.rows)}" for source in corpus.sources))
    for source in corpus.sources:
        click.echo(f"{source.name}: read as type {source.entry.get('type') or 'unknown, by the names of its columns'}")
    click.echo(", ".join(f"{key} {value}" for key, value in settings.identity.items()))
    click.echo(f"{path}: " + ("is there and would be verified" if is_finished(path) else "would be made"))
