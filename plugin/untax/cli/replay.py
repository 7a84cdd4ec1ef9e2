"""``untax replay``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from untax.replay.request import Like, TextSource

_FOR_ALL = "Once for all texts, or once for each."


@click.command("replay", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--texts",
    "paths",
    metavar="TEXTS",
    multiple=True,
    required=True,
    help="A .txt, .jsonl, .json or .parquet file, the folder of a dataset, or a dataset's id on the hub. Repeatable.",
)
@click.option("--split", multiple=True, help=f"Datasets: which split  [default: train]. {_FOR_ALL}")
@click.option("--name", multiple=True, help=f"Datasets: which configuration. {_FOR_ALL}")
@click.option("--revision", multiple=True, help=f"Datasets of the hub: which commit. {_FOR_ALL}")
@click.option("--column", multiple=True, help=f"Rows: the column with the text  [default: text]. {_FOR_ALL}")
@click.option(
    "--separator",
    multiple=True,
    help=f"Plain text: what stands between two texts  [default: <|endoftext|>, or else blank lines]. {_FOR_ALL}",
)
@click.option(
    "--like", type=click.Path(path_type=Path), help="The Axolotl YAML of the training: its instruction data is counted."
)
@click.option("--ratio", type=click.FloatRange(min=0, min_open=True), help="With --like: how many times that  [1.0].")
@click.option("--by", type=click.Choice(["rows", "tokens"]), help="With --like: what is counted  [default: rows].")
@click.option("--rows", type=click.IntRange(1), help="How many rows, whatever the training.")
@click.option("--base", help="The model whose tokenizer counts  [default: that of --like].")
@click.option("--sequence-len", type=click.IntRange(8), help="Tokens of a row  [default: those of --like, or 1024].")
@click.option("--seed", default=42, show_default=True, help="Of which texts are taken.")
@click.option("--trust-remote-code", is_flag=True, help="Let code that comes with the model's tokenizer run.")
@click.option("--force", is_flag=True, help="Replace a replay text that is there.")
@click.option("--dry-run", is_flag=True, help="Say how many rows of which texts would be written.")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The folder.")
def command(
    paths: tuple[str, ...],
    like: Path | None,
    ratio: float | None,
    by: str | None,
    rows: int | None,
    base: str | None,
    sequence_len: int | None,
    seed: int,
    trust_remote_code: bool,
    force: bool,
    dry_run: bool,
    out: Path,
    **chosen: tuple[str, ...],
) -> None:
    """Sample pretraining texts as training rows, to be mixed into instruction data.

    The baseline Replay of Disperse-Then-Merge (section 5.1): as many rows of pretraining text as the instruction data
    has, in the same training. OUT/replay.jsonl holds one {"text": ...} a line; under datasets: of the training it is
    the entry {path: OUT/replay.jsonl, type: completion}. Each text is cut at the end of a token, so that Axolotl makes
    one row of at most --sequence-len tokens of it.

    Texts of files are sampled from all of them alike; datasets are streamed, shuffled in a buffer, no further than
    needed, and give equal shares. The same seed and texts give the same file. No text is repeated: where there are too
    few, long ones give further rows from where their first ones end, and if that is too little it is an error.
    """
    from untax.cli.model_on_texts import quieten
    from untax.replay.request import make_request

    sources = text_sources(paths, chosen)
    request = make_request(
        sources,
        like=_read_like(like, out),
        base=base,
        sequence_len=sequence_len,
        rows=rows,
        ratio=ratio,
        by=by,
        seed=seed,
        trust_remote_code=trust_remote_code,
        where=like or "untax replay",
    )
    quieten()
    from untax.replay.replay import replay

    made = replay(request, out, force=force, dry_run=dry_run, say=click.echo, progress=_progress)
    if made is not None:
        facts = made.facts
        further = f", {facts['later_pieces']:,} of them further pieces" if facts["later_pieces"] else ""
        click.echo(
            f"{made.path}: {facts['rows']:,} rows{further}, {facts['tokens']:,} tokens, of {facts['texts']:,} texts"
        )


def text_sources(paths: Sequence[str], chosen: dict[str, tuple[str, ...]]) -> tuple[TextSource, ...]:
    """The texts with what was said of each.

    Args:
        paths: in the order in which they were typed.
        chosen: option -> its values: none, one for all paths, or one for each; an empty one is none.

    Raises:
        UntaxError: there are as many values as nothing.
    """
    from untax.errors import UntaxError
    from untax.replay.request import TextSource

    for option, values in chosen.items():
        if len(values) not in (0, 1, len(paths)):
            raise UntaxError(
                f"There are {len(values)} values of --{option} for {len(paths)} texts.",
                where=f"--{option}",
                fix="Give one for all, or one for each --texts, '' for none.",
            )
    each = [
        {option: values[index if len(values) > 1 else 0] for option, values in chosen.items() if values}
        for index in range(len(paths))
    ]
    if any("separator" in own for own in each):
        each = [{key: _unescaped(value) if key == "separator" else value for key, value in own.items()} for own in each]
    given: list[dict[str, Any]] = [{key: value for key, value in own.items() if value} for own in each]
    return tuple(TextSource(path, **own) for path, own in zip(paths, given, strict=True))


def _unescaped(separator: str) -> str:
    return separator.replace("\\n", "\n").replace("\\t", "\t")


def _read_like(path: Path | None, out: Path) -> Like | None:
    if path is None:
        return None
    import yaml

    from untax.errors import UntaxError
    from untax.replay.request import read_like

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UntaxError("There is no such YAML.", where=path, fix="Name an Axolotl YAML with --like.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UntaxError(f"This is no YAML: {error}", where=path, fix="Correct the file.") from error
    if not isinstance(content, dict):
        raise UntaxError("This YAML holds no keys.", where=path, fix="Name an Axolotl YAML with --like.")
    # As Axolotl has it: paths start where the command is run, not where the YAML is.
    return read_like(content, Path(), out)


@contextlib.contextmanager
def _progress(amount: int, what: str) -> Iterator[Callable[[int], object]]:
    import sys

    from tqdm import tqdm

    seconds = 0.5 if sys.stderr.isatty() else 15.0
    with tqdm(total=amount, desc="replay", unit=f" {what}", mininterval=seconds, file=sys.stderr) as bar:
        # A few more texts than rows are looked at.
        yield lambda more: bar.update(max(0, min(more, amount - bar.n)))
