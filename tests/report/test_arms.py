"""The table of arms from results folders written by hand."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from untax.errors import UntaxError
from untax.manifest import write_manifest
from untax.report.arms import (
    arm_rows,
    cheaper_at_equal_gain,
    format_table,
    reference_curve,
    tax_at_gain,
    write_arms,
)

KEYS = [
    *("arm", "scale", "gain", "gain_stderr", "preference", "preference_stderr", "tax", "tax_stderr", "digest"),
]


def scored(folder: Path, gain: list[float], tax: list[float], right: list[float]) -> Path:
    """A results folder; every document has ten tokens, every pair its own prompt."""
    folder.mkdir()
    lines = [
        {"task": f"untax_demo_{task}", "doc_id": place, "doc_hash": task, "prompt_hash": f"{place}"} | scores
        for task, values in (
            ("gain", [{"nll": nll, "tokens": 10} for nll in gain]),
            ("tax", [{"nll": nll, "tokens": 10} for nll in tax]),
            ("preference", [{"acc": acc} for acc in right]),
        )
        for place, scores in enumerate(values)
    ]
    (folder / "demo.samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_manifest(
        folder,
        what="results",
        outputs=["demo.samples.jsonl"],
        started=time.time(),
        name="demo.untax.json",
        inputs={"model": f"digest of {folder.name}"},
    )
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return scored(tmp_path / "base", [40.0, 60.0], [10.0, 20.0], [1.0, 0.0, 1.0, 0.0])


@pytest.fixture
def vanilla(tmp_path: Path) -> Path:
    return scored(tmp_path / "vanilla", [30.0, 50.0], [11.0, 23.0], [1.0, 1.0, 1.0, 0.0])


def test_rows_by_hand(base: Path, vanilla: Path) -> None:
    first, second = arm_rows([("vanilla", 1.0, vanilla)], base, "demo")
    assert list(first) == list(second) == KEYS
    assert (first["arm"], first["scale"], first["tax"], first["tax_stderr"]) == ("base", 0.0, 0.0, 0.0)
    assert first["gain"] == 5.0
    assert second["gain"] == 4.0
    assert second["gain_stderr"] == pytest.approx(math.sqrt(2 * 200) / 20)
    assert second["preference"] == 0.75
    assert second["preference_stderr"] == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert (second["tax"], second["tax_stderr"]) == pytest.approx((0.2, math.sqrt(2 * 2) / 20))
    assert second["digest"] == "digest of vanilla"


def test_arms_json(base: Path, vanilla: Path, tmp_path: Path) -> None:
    rows = arm_rows([("vanilla", 1.0, vanilla)], base, "demo")
    write_arms(rows, tmp_path / "results" / "arms.json")
    assert json.loads((tmp_path / "results" / "arms.json").read_text()) == rows


def test_one_document_leaves_valid_json(tmp_path: Path) -> None:
    one = scored(tmp_path / "one", [4.0], [5.0], [1.0])
    rows = arm_rows([], one, "demo")
    write_arms(rows, tmp_path / "arms.json")
    assert json.loads((tmp_path / "arms.json").read_text(), parse_constant=pytest.fail)[0]["gain_stderr"] is None
    assert "nan" not in format_table(rows)


def test_changed_scores_are_refused(base: Path, vanilla: Path) -> None:
    with (vanilla / "demo.samples.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(UntaxError):
        arm_rows([("vanilla", 1.0, vanilla)], base, "demo")


def test_unscored_arm_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UntaxError, match="no scores"):
        arm_rows([("dtm", 1.0, tmp_path / "dtm")], base, "demo")


def test_arm_of_other_items_is_refused(base: Path, tmp_path: Path) -> None:
    short = scored(tmp_path / "short", [1.0], [1.0], [1.0])
    with pytest.raises(UntaxError, match="cannot be compared"):
        arm_rows([("short", 1.0, short)], base, "demo")


CURVE = [(5.0, 0.0), (4.0, 0.1), (3.0, 0.4)]


def test_interpolation_by_hand() -> None:
    assert tax_at_gain(4.5, CURVE) == pytest.approx(0.1 / 4)
    assert tax_at_gain(3.25, CURVE) == pytest.approx((0.1**0.5 * 0.25 + 0.4**0.5 * 0.75) ** 2)
    assert [tax_at_gain(gain, CURVE) for gain, _ in CURVE] == pytest.approx([tax for _, tax in CURVE])
    assert tax_at_gain(5.1, CURVE) is None
    assert tax_at_gain(2.9, CURVE) is None
    assert tax_at_gain(4.0, []) is None


@given(st.floats(0.1, 3), st.floats(0.01, 1), st.lists(st.floats(0.05, 1), min_size=1, max_size=4), st.floats(0, 1))
def test_a_tax_that_grows_with_the_square_of_the_step_is_found_exactly(
    slope: float, curvature: float, scales: list[float], place: float
) -> None:
    curve = [(5 - slope * scale, curvature * scale**2) for scale in sorted({0.0, *scales})]
    step = place * max(scales)
    assert tax_at_gain(5 - slope * step, curve) == pytest.approx(curvature * step**2, rel=1e-6, abs=1e-9)


def test_a_tax_below_zero_is_noise() -> None:
    assert tax_at_gain(4.5, [(5.0, 0.0), (4.0, -0.001), (3.0, 0.4)]) == 0.0


def test_cheaper_at_equal_gain() -> None:
    rows = [row("base", 0.0, 5.0, 0.0), row("vanilla", 1.0, 3.0, 0.4), row("dtm", 1.0, 4.0, 0.03)]
    curve = reference_curve(rows)
    assert curve == [(5.0, 0.0), (3.0, 0.4)]
    assert cheaper_at_equal_gain(rows[2], curve) == pytest.approx(0.1 - 0.03)
    assert cheaper_at_equal_gain(row("strong", 1.0, 2.0, 0.1), curve) is None
    assert reference_curve(rows[:1]) == []


def test_a_curve_that_turns_back_gives_its_lowest_tax() -> None:
    assert tax_at_gain(4.5, [(5.0, 0.0), (4.0, 0.2), (5.0, 0.8)]) == pytest.approx(0.05)


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=2, max_size=6), st.floats(0, 9))
def test_interpolation_stays_within_the_curve(curve: list[tuple[float, float]], gain: float) -> None:
    found = tax_at_gain(gain, curve)
    gains, taxes = zip(*curve, strict=True)
    assert (found is not None) == (min(gains) <= gain <= max(gains))
    assert found is None or min(taxes) - 1e-9 <= found <= max(taxes) + 1e-9


def row(arm: str, scale: float, gain: float, tax: float) -> dict[str, object]:
    errors = {"gain_stderr": 0.01, "preference_stderr": 0.01, "tax_stderr": 0.001}
    return {"arm": arm, "scale": scale, "gain": gain, "preference": 0.5, "tax": tax, "digest": "d", **errors}


def test_table() -> None:
    rows = [
        row("vanilla", 1.0, 3.0, 0.4),
        row("vanilla", 0.5, 4.0, 0.1),
        row("dtm", 1.0, 3.5, 0.2),
        row("strong", 1.0, 2.5, 0.3),
        row("base", 0.0, 5.0, 0.0),
    ]
    lines = format_table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].endswith("vanilla's tax at this gain")
    assert [line.split()[0] for line in lines[1:]] == ["base", "vanilla", "vanilla", "dtm", "strong"]
    assert lines[4].endswith(" 0.225")
    assert lines[4].count("+-") == 3
    assert lines[5].endswith(" ")  # beyond vanilla's range


def test_table_without_vanilla() -> None:
    assert format_table([row("base", 0.0, 5.0, 0.0), row("dtm", 1.0, 3.5, 0.2)]).splitlines()[2].endswith(" ")
