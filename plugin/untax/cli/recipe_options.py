"""The options of ``untax recipe ARM``: those of every arm, of its data, and of the arm itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from untax.recipes.arms import KINDS, Merged, Sparse, WithPreference
from untax.recipes.merge_choice import MERGES
from untax.recipes.options import paper_of

F = TypeVar("F", bound=Callable[..., Any])
Option = Callable[[F], F]


def add(function: F, options: Sequence[Option[Any]]) -> F:
    """The function with options, in their order."""
    for option in reversed(options):
        function = option(function)
    return function


def writing() -> list[Option[Any]]:
    """What every way of writing a run folder has."""
    return [
        click.option("--force", is_flag=True, help="Overwrite another run's files and YAMLs edited by hand."),
        click.option("--dry-run", is_flag=True, help="Say what would be written and run, and write nothing."),
        click.option("--diff", is_flag=True, help="Show the difference to what is on disk, and write nothing."),
    ]


def options_of(kind: str) -> list[Option[Any]]:
    """All options of an arm's command."""
    return [*_data(kind), *_own(kind), *_company(), *_shared(), *writing()]


def _shared() -> list[Option[Any]]:
    return [
        click.option("--base", required=True, help="The base model: a folder or a hub id."),
        click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The run folder."),
        click.option(
            "--device",
            type=click.Choice(["cuda", "cpu"]),
            default="cuda",
            show_default=True,
            help="Decides precision and kernels.",
        ),
        click.option("--seed", type=int, default=42, show_default=True, help="Seed of the trainings."),
        click.option("--suite", help="Score every model on this suite of `untax eval`."),
        click.option(
            "--scale",
            "scales",
            multiple=True,
            type=float,
            help="What the delta is multiplied by; may be repeated: a model for each.  [default: 1.0]",
        ),
    ]


def _data(kind: str) -> list[Option[Any]]:
    paft = paper_of(kind) == "paft"
    dataset_type = "chat_template" if paft else "alpaca"
    return [
        click.option(
            "--dataset",
            "--sft",
            "datasets",
            multiple=True,
            help="Instruction data: a file, folder or hub id; may be repeated.",
        ),
        click.option(
            "--type",
            "--sft-type",
            "sft_type",
            default=dataset_type,
            show_default=True,
            help="Axolotl's dataset type of the instruction data.",
        ),
        click.option("--split", "--sft-split", "sft_split", help="Its split (default: Axolotl's)."),
        click.option(
            "--first-turn/--all-turns",
            default=not paft,
            show_default=True,
            help="Train on the first turn of a dialogue only, as Disperse-Then-Merge does.",
        ),
        click.option(
            "--preference",
            "pairs",
            multiple=True,
            help="Preference pairs: a file, folder or hub id; may be repeated.",
        ),
        click.option(
            "--preference-type",
            default="chat_template.argilla_chat",
            show_default=True,
            help="Axolotl's dataset type of the pairs, as DPO reads them: a name, or {field_prompt: ...}.",
        ),
        click.option("--preference-split", help="Their split (default: Axolotl's)."),
        click.option(
            "--replay",
            "texts",
            multiple=True,
            help="Pretraining text, for the arms replay and ewc: a file, folder or hub id; may be repeated.",
        ),
        click.option("--replay-split", help="Its split."),
        click.option("--replay-name", help="Its configuration, of a hub dataset that has several."),
        click.option("--replay-column", help="Its column with the text (default: text)."),
        click.option(
            "--chat-template",
            help="An Axolotl chat template for all trainings, or zephyr, PAFT's (default: the base's).",
        ),
        click.option("--pad-token", help="The padding token of all trainings, for a base without one."),
    ]


def _company() -> list[Option[Any]]:
    return [
        click.option(
            "--with",
            "company",
            multiple=True,
            type=click.Choice(list(KINDS)),
            help="Another arm, with its defaults and the options that it shares; may be repeated.",
        ),
        click.option("--with-vanilla", is_flag=True, help="The same as --with vanilla."),
        click.option(
            "--with-baselines", is_flag=True, help="The same as --with vanilla --with sequential --with parallel."
        ),
    ]


def _own(kind: str) -> list[Option[Any]]:
    arm = KINDS[kind]
    fields = arm.model_fields
    found: list[Option[Any]] = [option for name, option in _SETTINGS if name in fields]
    if issubclass(arm, WithPreference):
        found.append(
            click.option(
                "--method",
                "preference",
                multiple=True,
                help="dpo (default), orpo, kto or simpo; may be repeated: each is trained for itself.",
            )
        )
    if kind == "sequential":
        found.append(
            click.option(
                "--first-stage",
                multiple=True,
                help="dense or sparse SFT; may be repeated: each has a second stage.  [default: dense]",
            )
        )
    if issubclass(arm, Sparse):
        found += [
            click.option(
                "--delta-l1",
                type=float,
                help="Lambda of the L1 penalty (PAFT: 0.0001 and 0.001).  [default: 0.0001]",
            ),
            click.option("--delta-sparsity", type=float, help="Prune the sparse SFT's delta to this share of zeros."),
        ]
    if issubclass(arm, Merged):
        default = fields["merge"].get_default(call_default_factory=True)[0].method
        found += [
            click.option(
                "--merge",
                multiple=True,
                help=f"{', '.join(MERGES)}; may be repeated.  [default: {default}]",
            ),
            click.option("--statistics", help="fisher, regmean: a local file of texts like the training's."),
        ]
    return found


_SETTINGS: list[tuple[str, Option[Any]]] = [
    (
        "clusters",
        click.option(
            "-k", "--clusters", type=int, help="Number of clusters and sub-models (DTM figure 11).  [default: 4]"
        ),
    ),
    ("strategy", click.option("--strategy", help="random, kmeans, column, or a plugin's.  [default: random]")),
    (
        "balanced",
        click.option("--balanced", is_flag=True, default=None, help="random: sizes that differ by at most one."),
    ),
    ("text", click.option("--text", help="kmeans: embed the instruction, the response (default) or both.")),
    (
        "embedder",
        click.option("--embedder", help="kmeans: tfidf (default), sentence-transformers:MODEL, llm:MODEL, ..."),
    ),
    ("column", click.option("--column", help="column: the column whose values stay together (default: source).")),
    ("delta_l2", click.option("--delta-l2", type=float, help="Lambda of the L2 penalty.  [default: 0.01, ours]")),
    ("delta_ewc", click.option("--delta-ewc", type=float, help="Lambda of EWC.  [default: 0.01, ours]")),
    (
        "fisher",
        click.option("--fisher", help="The base's Fisher information, a file; else it is estimated on --replay text."),
    ),
    ("samples", click.option("--samples", type=int, help="On how many texts.  [default: 256]")),
    ("ratio", click.option("--ratio", type=float, help="Rows of text for each row of instruction data.  [default: 1]")),
    (
        "of",
        click.option("--of", multiple=True, help="sft, sft-sparse, dpo, orpo, kto, simpo; may be repeated."),
    ),
]
