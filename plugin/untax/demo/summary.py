"""The last page of ``untax demo``: the table, how to read it, and where everything lies."""

from __future__ import annotations

from pathlib import Path

READING = """\
gain        NLL per token of held-out responses: lower is better
preference  share of held-out pairs whose chosen answer the model finds likelier
tax         rise in NLL per token on text sampled from the base model: what it forgot; lower is better
last column what vanilla SFT pays for the same gain when its delta is scaled down (between measured points: straight
            lines). An arm is better than stepping back towards the base only where its tax is below that."""


def summary(out: Path, table: str) -> str:
    """The page as text."""
    places = {
        "the recipe": "untax.yaml",
        "what was run": "recipes/, mergekit_configs/",
        "adapters and models": "outputs/",
        "scores": "results/, all in results/arms.json",
        "logs": ".untax/logs/",
    }
    listed = "\n".join(f"  {what:<20}{out}/{where}" for what, where in places.items())
    return f"\n{table}\n\n{READING}\n\n{listed}"
