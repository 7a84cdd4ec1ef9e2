"""The last page of ``untax demo``: the table, what it says, how to read it, and where everything lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from untax.report.arms import Row, cheaper_at_equal_gain, format_table, reference_curve

READING = """\
gain         NLL per token of held-out responses, in nats: lower is better
preference   share of held-out pairs whose chosen answer the model finds likelier per token
tax          rise in NLL per token on text sampled from the base model, what it forgot: lower is better
last column  what vanilla SFT pays for the same gain when its delta is scaled down towards the base. Scaling down cuts
             any arm's tax, so an arm is better only where its tax is below that column."""


def summary(out: Path, rows: Sequence[Row]) -> str:
    """The page as text."""
    places = {
        "the recipe": "untax.yaml",
        "what was run": "recipes/ and mergekit_configs/",
        "adapters and models": "outputs/",
        "scores": "results/, all of them in results/arms.json",
        "logs": ".untax/logs/",
    }
    listed = "\n".join(f"  {what:<20}{out}/{where}" for what, where in places.items())
    return f"\n{format_table(rows)}\n\n{verdict(rows)}\n\n{READING}\n\n{listed}"


def verdict(rows: Sequence[Row]) -> str:
    """What the table says of each arm at equal gain, one line each; two standard errors of the tax decide."""
    curve = reference_curve(rows)
    lines = []
    for row in rows:
        saved = cheaper_at_equal_gain(row, curve)
        if row["arm"] in ("base", "vanilla") or saved is None:
            continue
        clear = abs(saved) > 2 * row["tax_stderr"]
        word = ("less" if saved > 0 else "more") if clear else "neither less nor more"
        paid = f"{row['tax']:.3f}, vanilla {row['tax'] + saved:.3f}"
        lines.append(f"  {row['arm']} at scale {row['scale']:g}: {word} tax than vanilla ({paid})")
    return "At equal gain, with one seed:\n" + "\n".join(lines)
