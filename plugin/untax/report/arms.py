"""The table that decides: every arm's gain, preference and tax, and what vanilla pays for the same gain."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from untax.errors import UntaxError
from untax.evaluate import measures
from untax.evaluate.results import read_samples
from untax.evaluate.score import manifest_name
from untax.files import write_text
from untax.manifest import changed_outputs, read_manifest

Row = dict[str, Any]
HEADER = ("arm", "scale", "gain", "preference", "tax", "vanilla's tax at this gain")


def arm_rows(arms: Sequence[tuple[str, float, Path]], base: Path, suite: str) -> list[Row]:
    """One row per arm, the base first as arm ``base`` at scale 0.

    Args:
        arms: name, scale of the delta, results folder.
        base: the base model's results folder.
        suite: a suite with tasks ``untax_<suite>_{gain,preference,tax}``.

    Returns:
        rows of ``arm, scale, gain, preference, tax`` (gain: NLL per token of held-out responses, in nats; preference:
        accuracy; tax: rise of NLL per token over the base, in nats), their standard errors, and ``digest`` of the
        scored weights.

    Raises:
        UntaxError: a folder was not scored, was changed since, or was scored on other items than the base.
    """
    base_tax = _tasks(base, suite)["tax"]
    return [_row(name, scale, folder, suite, base_tax) for name, scale, folder in [("base", 0.0, base), *arms]]


def _row(name: str, scale: float, folder: Path, suite: str, base_tax: list[Row]) -> Row:
    tasks = _tasks(folder, suite)
    gain, gain_stderr = measures.nll_per_token(tasks["gain"])
    pairs = tasks["preference"]
    preference, preference_stderr = measures.accuracy(
        [pair["acc"] for pair in pairs], groups=[pair["prompt_hash"] for pair in pairs]
    )
    tax, tax_stderr = measures.paired_rise(tasks["tax"], base_tax)
    return {
        "arm": name,
        "scale": float(scale),
        "gain": gain,
        "gain_stderr": gain_stderr,
        "preference": preference,
        "preference_stderr": preference_stderr,
        "tax": tax,
        "tax_stderr": tax_stderr,
        "digest": _digest(folder, suite),
    }


def _tasks(folder: Path, suite: str) -> dict[str, list[Row]]:
    """Measure -> samples."""
    found = {task.removeprefix(f"untax_{suite}_"): samples for task, samples in read_samples(folder, suite).items()}
    for measure in ("gain", "preference", "tax"):
        if measure not in found:
            raise UntaxError(
                f"The suite '{suite}' has no task untax_{suite}_{measure} in these results.",
                where=folder,
                fix="The table of arms needs a suite with gain, preference and tax.",
            )
    return found


def _digest(folder: Path, suite: str) -> str:
    manifest = read_manifest(folder, manifest_name(suite))
    if manifest is None or changed_outputs(folder, manifest):
        raise UntaxError(
            "These scores are unfinished or were changed after scoring.",
            where=folder / manifest_name(suite),
            fix=f"Run `untax eval MODEL --suite {suite} --force`.",
        )
    return str(manifest["inputs"]["model"])


def write_arms(rows: Sequence[Row], path: Path) -> None:
    """Write ``results/arms.json`` in one step; what is not a number (a single sample's error) becomes null."""
    plain = [{name: None if value != value else value for name, value in row.items()} for row in rows]
    write_text(path, json.dumps(plain, indent=2) + "\n")


def tax_at_gain(gain: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """The tax that a reference pays for ``gain``, between its measured scales.

    Near the base the tax grows with the square of the step (it estimates a KL divergence) while the gain grows with
    the step itself. So the square root of the tax is interpolated linearly in gain; a straight line between the points
    would charge the reference too much and flatter every arm that is compared with it.

    Args:
        gain: NLL per token.
        curve: (gain, tax) of the reference from scale 0 (the base) upwards; a tax below 0 is noise and counts as 0.

    Returns:
        the lowest tax at which the curve has this gain; None where it never has.
    """
    taxes = []
    for (gain_a, tax_a), (gain_b, tax_b) in itertools.pairwise(curve):
        if min(gain_a, gain_b) <= gain <= max(gain_a, gain_b):
            root_a, root_b = math.sqrt(max(tax_a, 0.0)), math.sqrt(max(tax_b, 0.0))
            share = 0.0 if gain_a == gain_b else (gain - gain_a) / (gain_b - gain_a)
            taxes.append((root_a + share * (root_b - root_a)) ** 2)
    return min(taxes, default=None)


def reference_curve(rows: Sequence[Row], reference: str = "vanilla") -> list[tuple[float, float]]:
    """(gain, tax) of the base and of the reference arm at each of its scales, from the base upwards."""
    points = sorted((row for row in rows if row["arm"] in ("base", reference)), key=lambda row: row["scale"])
    return [(row["gain"], row["tax"]) for row in points] if len(points) > 1 else []


def cheaper_at_equal_gain(row: Row, curve: Sequence[tuple[float, float]]) -> float | None:
    """How much less tax an arm pays than the reference at the arm's gain; None where the reference never has it."""
    paid = tax_at_gain(row["gain"], curve)
    return None if paid is None else paid - row["tax"]


def format_table(rows: Sequence[Row], reference: str = "vanilla") -> str:
    """The rows as a plain-text table, the base first; the last column is blank where vanilla never had that gain.

    An arm wins at equal gain where its tax is below that column.
    """
    ordered = sorted(rows, key=lambda row: row["arm"] != "base")
    curve = reference_curve(rows, reference)
    lines = [HEADER, *(_cells(row, curve) for row in ordered)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    )


def _cells(row: Row, curve: Sequence[tuple[float, float]]) -> tuple[str, ...]:
    paid = tax_at_gain(row["gain"], curve)
    measured = (_with_error(row[name], row[f"{name}_stderr"]) for name in ("gain", "preference", "tax"))
    return (row["arm"], f"{row['scale']:.2f}", *measured, "" if paid is None else f"{paid:.3f}")


def _with_error(value: float, stderr: float | None) -> str:
    return f"{value:.3f}" if stderr is None or math.isnan(stderr) else f"{value:.3f} +- {stderr:.3f}"
