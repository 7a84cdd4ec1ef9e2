"""The text of NOTICE: what is bundled, where it came from and under which licence."""

from __future__ import annotations

from collections import Counter
from typing import Any

from untax.demo import sources

HEAD = """\
The data of `untax demo`
========================

Made by `python -m untax.demo.build_data`, the same bytes every time. All rows come from public data under
licences that allow this copy; they were shortened to what a model of 260k parameters can be trained on in
minutes: Latin script, short, each once, without offensive words, instruction and answer as they were.

In data/:
sft.jsonl                 {sft} training rows: source, instruction, input, output
heldout.jsonl             {heldout} rows of the same sources; none of their instructions is in sft.jsonl or in a pair
preference.jsonl          {preference} training pairs: source, prompt, chosen, rejected
preference_heldout.jsonl  {preference_heldout} pairs, at most four per prompt; none of their prompts is trained on
base_samples.jsonl        {base_samples} texts sampled from the base model

`tokens`, `chosen_tokens` and `rejected_tokens` count tokens of the base model's own tokenizer.

"""
BASE = """
base_samples.jsonl: temperature 1, no top-k and no top-p, begun after the beginning-of-sequence token, up to 200
tokens or a special token (this model ends a story with `<s>`), in float64 with a seeded generator.
{kept}

base/ is the TinyStories Llama "stories260K" of https://github.com/karpathy/llama2.c (MIT, see base/LICENSE),
converted to the Hugging Face format.
"""


def notice(files: dict[str, list[dict[str, Any]]], kept: str) -> str:
    """NOTICE, with counts.

    Args:
        files: file name without suffix -> its rows.
        kept: a sentence on how many samples of the base model were kept.
    """
    counts = {name: len(rows) for name, rows in files.items()}
    tables = [
        _table("Instruction rows", sources.INSTRUCTIONS, files["sft"], files["heldout"]),
        _table("Preference pairs", sources.PREFERENCES, files["preference"], files["preference_heldout"]),
    ]
    return HEAD.format(**counts) + "\n".join(tables) + BASE.format(kept=kept)


def _table(
    title: str, known: dict[str, sources.Source], train: list[dict[str, Any]], heldout: list[dict[str, Any]]
) -> str:
    trained, held = Counter(row["source"] for row in train), Counter(row["source"] for row in heldout)
    lines = [f"{title}: source, training, held out, licence, origin"]
    for name, source in known.items():
        lines.append(f"  {name:<22}{trained[name]:>5}{held[name]:>5}  {source.licence:<11} {source.origin}")
    return "\n".join(lines) + "\n"
