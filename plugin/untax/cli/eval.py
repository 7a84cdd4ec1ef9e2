"""``untax eval``: score models on a suite with lm-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command("eval", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--suite", default="demo", show_default=True, help="The suite to score on.")
@click.option("--limit", type=int, help="Score only so many documents of each task.")
@click.option(
    "--results",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder for results/<model>/ [default: results/ beside the model's outputs/, or ./results].",
)
@click.option("--as", "name", help="Call the results so instead of after the model; for a single MODEL.")
@click.option("--device", help="Where to run, for example cpu or cuda:1 [default: a GPU if there is one].")
@click.option("--batch-size", default="16", show_default=True, help="Sequences at a time, or auto.")
@click.option("--force", is_flag=True, help="Score again even if nothing changed.")
def command(
    models: tuple[str, ...],
    suite: str,
    limit: int | None,
    results: Path | None,
    name: str | None,
    device: str | None,
    batch_size: str,
    force: bool,
) -> None:
    """Score each MODEL (a folder or a hub id) and write results/<model>/<suite>.json."""
    from untax.evaluate.model_folder import check_model
    from untax.evaluate.score import score
    from untax.evaluate.suites import suite_folder

    suite_folder(suite)
    size = _batch_size(batch_size)
    folders = _folders(models, results, name)
    for model in models:
        check_model(model)
    _quiet_bars()
    for model, folder in zip(models, folders, strict=True):
        found = score(
            model, suite, results=folder, limit=limit, batch_size=size, device=device, force=force, say=click.echo
        )
        click.echo(_table(model, found))
        click.echo(f"  {folder / f'{suite}.json'}")


def _batch_size(text: str) -> int | str:
    from untax.errors import UntaxError

    if text == "auto" or (text.isdecimal() and int(text) > 0):
        return text if text == "auto" else int(text)
    raise UntaxError(f"'{text}' is no batch size.", where="--batch-size", fix="Use a number above zero, or auto.")


def _folders(models: tuple[str, ...], root: Path | None, name: str | None) -> list[Path]:
    from untax.errors import UntaxError
    from untax.evaluate.model_folder import results_folder

    if name is not None:
        if len(models) != 1 or Path(name).name != name:
            raise UntaxError(
                "--as names the results of one model.", where=f"--as {name}", fix="Give one MODEL and a plain name."
            )
        return [(root or Path("results")) / name]
    folders = [results_folder(model, root) for model in models]
    for place, folder in enumerate(folders):
        if folder in folders[:place]:
            raise UntaxError(
                "Two of the models would write to one results folder.",
                where=folder,
                fix="Score them one at a time, each with its own --results.",
            )
    return folders


def _quiet_bars() -> None:
    """Progress bars only where someone watches; must come before the heavy imports."""
    import os
    import sys

    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("TQDM_MININTERVAL", "30")  # for the bar that lm-eval does not let one disable
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _table(model: str, found: dict[str, Any]) -> str:
    lines = [model]
    for task, metrics in sorted(found["results"].items()):
        for name, value in metrics.items():
            metric, _, kept = name.partition(",")
            if not kept or metric.endswith("_stderr") or not isinstance(value, float):
                continue
            stderr = metrics.get(f"{metric}_stderr,{kept}")
            error = f" +- {stderr:.4f}" if isinstance(stderr, float) else ""
            lines.append(f"  {task:<28}{metric:<16}{value:9.4f}{error}")
    return "\n".join(lines)
