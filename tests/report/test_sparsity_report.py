"""The table, the JSON and the figure of sparsity say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from untax import __version__
from untax.adapters.sparsity import LayerSparsity, Thresholds
from untax.report.sparsity import Measured, percent, sparsity_json, sparsity_text
from untax.report.sparsity_figure import draw_sparsity

THRESHOLDS = Thresholds()


def layer(module: str, elements: int, below: int, relative: int | None = None, zeros: int = 0) -> LayerSparsity:
    return LayerSparsity(module, elements, below, relative, zeros, 0.5, 0.25, None if relative is None else 0.02)


SFT = Measured(
    "sft",
    (
        layer("model.layers.0.self_attn.q_proj", 1000, 123, 200, 7),
        layer("model.layers.10.self_attn.q_proj", 1000, 456, 700),
        layer("model.layers.2.mlp.up_proj", 3000, 3000, 3000, 3000),
        layer("lm_head", 100000, 1, 0),
    ),
)
DPO = Measured("dpo", (layer("model.layers.0.self_attn.q_proj", 1000, 999), layer("model.layers.0.extra", 10, 0)))


def text(*found: Measured, layers: bool = False, blocks: bool = False) -> str:
    return sparsity_text(found, THRESHOLDS, layers=layers, blocks=blocks)


def rows(table: str) -> dict[str, list[str]]:
    """First word of a line -> its other words; of two lines the last."""
    return {words[0]: words[1:] for line in table.splitlines() if (words := line.split())}


@settings(derandomize=True)
@given(st.floats(0, 1))
def test_percents_have_two_decimals_and_never_make_some_none_or_all(share: float) -> None:
    shown = percent(share)
    assert re.fullmatch(r"\d{1,3}\.\d\d%|<0\.01%|>99\.99%", shown)
    assert (shown == "0.00%") == (share == 0)
    assert (shown == "100.00%") == (share == 1)
    assert abs(float(shown.strip("<>%")) / 100 - share) <= 0.0001


def test_one_adapter_in_full() -> None:
    table = text(SFT, blocks=True, layers=True)
    found = rows(table)
    # Layers count alike in the mean: (12.3 + 45.6 + 100 + 0.001) / 4; all: 3580 of 105000.
    assert found["sft"][:8] == ["4", "105,000", "39.48%", "3.41%", "47.50%", "3.71%", "25.17%", "2.86%"]
    assert found["q_proj"] == [
        "2",
        "2,000",
        "28.95%",
        "28.95%",
        "45.00%",
        "45.00%",
        "0.35%",
        "0.35%",
        "1",
        "0.7071",
        "0.01581",
        "0.02",
    ]
    assert found["lm_head"][2] == "<0.01%"
    assert [line.split()[0] for line in table.splitlines() if re.match(r"\d+ ", line)] == ["0", "2", "10"]
    assert found["outside"][0] == "1"
    assert found["model.layers.10.self_attn.q_proj"][2] == "45.60%"
    assert all(line == line.rstrip() for line in table.splitlines())


def test_several_side_by_side() -> None:
    table = text(SFT, DPO)
    assert rows(table)["q_proj"] == ["28.95%", "45.00%", "99.90%", "-"]
    # What an adapter lacks is blank: the line of `extra` has only the other one's two cells, under its name.
    (line,) = [line for line in table.splitlines() if line.startswith("extra")]
    (names,) = [line for line in table.splitlines() if line.startswith("mean of layers")]
    assert line.split() == ["extra", "0.00%", "-"]
    assert line.index("0.00%") > names.index("sft")
    assert rows(text(SFT, DPO, blocks=True))["0"] == ["12.30%", "20.00%", "49.95%", "-"]  # not 999 of 1010
    assert "model.layers.0" not in table
    assert "block" not in table
    for part in ("mean of layers", "block", "layer "):
        assert part in text(SFT, DPO, blocks=True, layers=True)


def test_columns_stand_below_each_other() -> None:
    long = Measured("an-adapter-with-a-very-long-name-indeed", SFT.layers)
    for table in (text(long, DPO), text(SFT, long, DPO, layers=True), text(long)):
        for section in table.split("\n\n")[:-1]:
            ends = {
                len(line) for line in section.splitlines()[1:] if not line.startswith(("extra", "model.", "lm_", "up_"))
            }
            assert len(ends) == 1


def test_json_equals_the_table() -> None:
    content = json.loads(json.dumps(sparsity_json([SFT, DPO], THRESHOLDS)))
    assert content["untax"] == __version__
    assert content["thresholds"] == {"absolute": 1e-5, "relative": 1e-3}
    for one, measured in zip(content["adapters"], (SFT, DPO), strict=True):
        found = rows(text(measured, layers=True, blocks=True))
        groups: dict[str, dict[str, Any]] = {one["name"]: one["overall"], **one["modules"], **one["blocks"]}
        for name, group in groups.items():
            shares = ("mean_below", "below", "mean_below_relative", "below_relative", "mean_zeros", "zeros")
            assert found[name][:8] == [
                str(group["layers"]),
                f"{group['elements']:,}",
                *(percent(group[key]) for key in shares),
            ]
            assert float(found[name][8]) == pytest.approx(group["l1"], rel=1e-3)
        for layer_json in one["layers"]:
            if layer_json["module"] not in groups:
                assert found[layer_json["module"]][2] == percent(layer_json["below"])
            assert layer_json["below"] == layer_json["count_below"] / layer_json["elements"]
        assert len(one["layers"]) == len(measured.layers)


def test_json_has_what_is_said_about_an_adapter() -> None:
    measured = Measured("a", DPO.layers, {"digest": "ab", "base": None})
    (one,) = sparsity_json([measured], THRESHOLDS)["adapters"]
    assert (one["digest"], one["base"]) == ("ab", None)
    assert one["overall"]["mean_below_relative"] is None


# The figure


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw_sparsity(tmp_path / name, [SFT, DPO], THRESHOLDS)
    first = (tmp_path / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert first == (tmp_path / "b.png").read_bytes()
    for name in ("a.svg", "b.svg"):
        draw_sparsity(tmp_path / name, [DPO, SFT], THRESHOLDS)
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    draw_sparsity(tmp_path / "c.png", [SFT, SFT], THRESHOLDS)
    assert first != (tmp_path / "c.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg", "b.png", "b.svg", "c.png"]


def height(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[20:24])


def test_a_second_row_only_for_a_relative_share(tmp_path: Path) -> None:
    draw_sparsity(tmp_path / "one.png", [DPO], THRESHOLDS)
    draw_sparsity(tmp_path / "two.png", [SFT], THRESHOLDS)
    assert height(tmp_path / "two.png") > 1.5 * height(tmp_path / "one.png")


def test_bars_are_the_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    heights: list[float] = []
    drawn = Axes.bar

    def bar(axes: Axes, place: Any, height: Any, *rest: Any, **more: Any) -> Any:
        heights.extend(height)
        return drawn(axes, place, height, *rest, **more)

    monkeypatch.setattr(Axes, "bar", bar)
    draw_sparsity(tmp_path / "a.png", [DPO], THRESHOLDS)
    assert heights == [0.4995, 0.999, 0.0, 0]  # all, q_proj, extra, and the legend's


@pytest.mark.parametrize("count", [1, 12])
def test_names_are_no_formulas_and_may_be_many(count: int, tmp_path: Path) -> None:
    names = [f"$\\frac${number} and a long name of a folder" for number in range(count)]
    draw_sparsity(tmp_path / "a.png", [Measured(name, SFT.layers) for name in names], THRESHOLDS)
    assert (tmp_path / "a.png").stat().st_size > 10_000
