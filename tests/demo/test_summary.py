"""The demo's last page says what the numbers say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from untax.demo.summary import summary, verdict


def row(arm: str, scale: float, gain: float, tax: float) -> dict[str, Any]:
    errors = {"gain_stderr": 0.01, "preference_stderr": 0.01, "tax_stderr": 0.01}
    return {"arm": arm, "scale": scale, "gain": gain, "preference": 0.5, "tax": tax, "digest": "d", **errors}


# Vanilla at gain 4 pays (sqrt(0.4) / 2) ** 2 = 0.1.
ROWS = [row("base", 0, 5, 0), row("vanilla", 1, 3, 0.4)]


def test_verdict_by_hand():
    said = verdict([*ROWS, row("a", 1, 4, 0.07), row("b", 0.5, 4, 0.13), row("c", 1, 4, 0.115), row("d", 1, 2, 0.1)])
    assert said.splitlines()[1:] == [
        "  a at scale 1: less tax than vanilla (0.070, vanilla 0.100)",
        "  b at scale 0.5: more tax than vanilla (0.130, vanilla 0.100)",
        "  c at scale 1: neither less nor more tax than vanilla (0.115, vanilla 0.100)",
    ]


def test_summary_says_where_everything_lies():
    text = summary(Path("somewhere"), ROWS)
    for part in ("somewhere/untax.yaml", "somewhere/results/", "arms.json", "preference", "tax"):
        assert part in text
