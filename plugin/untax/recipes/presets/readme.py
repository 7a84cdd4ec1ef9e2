"""The README of each preset, and the index of all: from the preset, the plan and the estimates."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence

from untax.recipes.cost.time import UTILISATION
from untax.recipes.graph import Layout
from untax.recipes.presets.corpora import BYTES, PROMPT, WORDS, Corpus
from untax.recipes.presets.dtm import BAICHUAN
from untax.recipes.presets.estimates import SHOWN_GPUS, Costs, Estimate
from untax.recipes.presets.preset import Preset

WIDTH = 120
GENERATED = "<!-- Written by `make recipes` from plugin/untax/recipes/presets; edit it there. -->"
PAPERS = {
    "DTM": "[Disperse-Then-Merge](https://arxiv.org/abs/2405.13432)",
    "PAFT": "[PAFT](https://arxiv.org/abs/2406.17923)",
}
METHOD = (
    f"Estimated, not measured, for one GPU: memory at the peak, and hours at {UTILISATION:.0%} of the GPU's bf16 "
    "peak, as `untax check` estimates them ([the method](../../docs/check.md)), with as many tokens as rows times "
    f"their mean length. That length is computed from words, {WORDS} tokens each and {PROMPT} for the prompt, or from "
    f"bytes, {BYTES} to a token (ours). Padding, loading, dispersal, merging and scoring are not counted."
)


def readme(preset: Preset, cost: Costs) -> str:
    """The text of ``recipes/<name>/README.md``."""
    parts = [
        GENERATED,
        f"# {preset.title}",
        *map(_filled, preset.text),
        *_paper(preset),
        "## Run it",
        *_run(preset, cost),
        "## Data",
        *_data(preset),
        "## What it costs",
        _filled(METHOD),
        _table(("training", "rows", "tokens", "GPU memory", *(f"{gpu.name} h" for gpu in SHOWN_GPUS)), _costs(cost)),
        _filled(
            f"All outputs together take about {_size(cost.disk)} of disk, {_merged(cost)} merged models among them."
        ),
        "## What is ours",
        *(_item(text) for text in preset.differs),
        _filled("A comment beside each value in the YAMLs says where it comes from."),
    ]
    return _joined(parts)


def index(presets: Sequence[tuple[Preset, Costs]]) -> str:
    """The text of ``recipes/README.md``."""
    rows = []
    for preset, cost in presets:
        rows.append(
            (
                f"[{preset.name}]({preset.name}/README.md)",
                preset.rows,
                preset.base.name,
                ", ".join(corpus.name for corpus in (preset.sft, preset.preference) if corpus is not None),
                ", ".join(preset.content["arms"]),
                str(cost.trainings),
                _size(cost.memory),
                *(_hours(cost.hours(index)) for index in range(len(SHOWN_GPUS))),
            )
        )
    head = (
        "recipe",
        "rows of",
        "base",
        "data",
        "arms",
        "trainings",
        "GPU memory",
        *(f"{gpu.name} h" for gpu in SHOWN_GPUS),
    )
    return _joined(
        [
            GENERATED,
            "# Recipes",
            _filled(
                "Each folder has the recipe (`untax.yaml`), the Axolotl YAMLs that it expands to, and a README: what "
                "it is, where its data is, what it costs, what the papers leave open. The merges are in "
                "[mergekit_configs](../mergekit_configs), for `untax merge` or plain `mergekit-yaml`."
            ),
            "    untax recipe --from NAME -o run/      # any of them by its name, in a folder of its own\n"
            "    untax check run/                      # paths, data, memory and hours, before anything runs\n"
            "    untax run run/                        # all of it: resumable",
            _table(head, rows),
            _filled(
                "Memory is that of the largest training, hours are of all trainings together, on one GPU. "
                + METHOD.replace("../../", "../")
            ),
            "## What is not here",
            _item(BAICHUAN),
            _item(
                "The rows MoE and Deita of Disperse-Then-Merge's table 1, the 70B model of PAFT's table 2, and its "
                "7B model, which was trained from a merge of other people's models."
            ),
        ]
    )


def _paper(preset: Preset) -> list[str]:
    paper, _, tables = preset.rows.partition(" ")
    return [_filled(f"From {PAPERS[paper]}, {tables}.")] if paper in PAPERS else []


def _run(preset: Preset, cost: Costs) -> list[str]:
    folder = Layout(preset.name)
    trainings = [node.name for node in cost.plan.nodes if node.kind == "train"]
    merges = [node.name for node in cost.plan.nodes if node.kind == "merge"]
    commands = [
        f"untax recipe --from {preset.name} -o run/",
        "untax check run/",
        "untax run run/",
    ]
    by_hand = [
        f"axolotl train {folder.recipe(trainings[0])}",
        f"untax merge {folder.config(merges[0])} {folder.output(merges[0])}",
    ]
    parts = [
        "\n".join(f"    {command}" for command in commands),
        _filled("Or by hand, from the root of this repository: each training, then each merge, such as"),
        "\n".join(f"    {command}" for command in by_hand),
    ]
    made = [node.name for node in cost.plan.nodes if node.kind in ("replay", "fisher")]
    if made:
        parts.append(
            _filled(
                f"`untax run` also makes what some trainings read: {_names(made)}. By hand, the head of each YAML "
                "names it."
            )
        )
    if preset.base.gated:
        parts.append(_filled("The base is gated on the hub: accept its licence there and log in first."))
    return parts


def _data(preset: Preset) -> list[str]:
    rows = [_corpus(corpus, pairs=corpus is preset.preference) for corpus in preset.corpora]
    parts = [_table(("data", "where", "rows", "tokens per row, about"), rows)]
    notes = [note for corpus in preset.corpora for note in corpus.notes]
    if preset.replay is not None:
        sampled = f"Pretraining text is a sample of {preset.replay.name}, `{preset.replay.entry['path']}`."
        notes += [sampled, *preset.replay.notes]
    parts += [note if note.startswith("    ") else _filled(note) for note in notes]
    uncertain = (
        "Nothing was downloaded to write this: ids and columns are those of the data sets' cards and of their users."
    )
    checked = "`untax check` asks the hub whether they are there, and reads the first rows of what is downloaded."
    return [*parts, _filled(f"{uncertain} {checked}")]


def _corpus(corpus: Corpus, *, pairs: bool) -> tuple[str, ...]:
    paths = ", ".join(f"`{entry['path']}`" for entry in corpus.entries)
    return (
        corpus.name,
        paths,
        f"{corpus.rows:,} ({corpus.counted})",
        f"{corpus.tokens:,.0f}{' in both answers' if pairs else ''} (from {corpus.estimated})",
    )


def _costs(cost: Costs) -> list[tuple[str, ...]]:
    rows = [_cost(estimate) for estimate in cost.estimates]
    total = ("**all**", "", "", "", *(f"**{_hours(cost.hours(index))}**" for index in range(len(SHOWN_GPUS))))
    return [*rows, total]


def _cost(estimate: Estimate) -> tuple[str, ...]:
    times = "" if len(estimate.names) == 1 else f"{len(estimate.names)} x "
    return (
        _names(estimate.names),
        f"{estimate.rows:,}",
        f"{estimate.tokens / 1e6:,.0f}M",
        _size(estimate.memory),
        *(f"{times}{_hours(hours)}" for hours in estimate.hours),
    )


def _names(names: Sequence[str]) -> str:
    """`cluster-0` ... `cluster-3`, or all of a few."""
    if len(names) <= 3:
        return ", ".join(f"`{name}`" for name in names)
    return f"`{names[0]}` ... `{names[-1]}`"


def _merged(cost: Costs) -> int:
    return sum(node.kind == "merge" for node in cost.plan.nodes)


def _size(count: int) -> str:
    """Bytes in units that read well: below 10 with a digit behind the point."""
    unit, name = (1e12, "TB") if count >= 1e12 else (1e9, "GB")
    shown = count / unit
    return f"{shown:.1f} {name}" if shown < 10 else f"{shown:,.0f} {name}"


def _hours(hours: float) -> str:
    return f"{hours:.1f}" if hours < 10 else f"{hours:,.0f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _item(text: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _joined(parts: Sequence[str]) -> str:
    """Blank lines between parts, none between items of a list."""
    lines = [parts[0]]
    for before, part in itertools.pairwise(parts):
        lines.append(part if before.startswith("- ") and part.startswith("- ") else f"\n{part}")
    return "\n".join(lines) + "\n"
