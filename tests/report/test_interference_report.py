"""The tables, the JSON and the figure of interference say the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from untax import __version__
from untax.adapters.interference import LayerInterference
from untax.report.interference import MOST, Interference, interference_json, interference_text, meaning, signed
from untax.report.interference_figure import draw_interference
from untax.report.sparsity import percent


def layer(module: str, conflict: float, adapters: tuple[int, ...] = (0, 1, 2)) -> LayerInterference:
    """Three adapters: the first two conflict so much, have cosine 0.6 and share 3 of 10; the third agrees with none."""
    there = [number in adapters for number in range(3)]

    def matrix(rows: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(value * there[i] * there[j] for j, value in enumerate(row)) for i, row in enumerate(rows))

    return LayerInterference(
        module,
        100,
        adapters,
        inner=matrix(((4.0, 1.2, 0.0), (1.2, 1.0, 0.0), (0.0, 0.0, 9.0))),
        l1=tuple(10.0 * one for one in there),
        conflict=matrix(((0.0, 20 * conflict, 10.0), (20 * conflict, 0.0, 10.0), (10.0, 10.0, 0.0))),
        largest=matrix(((10.0, 3.0, 1.0), (3.0, 10.0, 1.0), (1.0, 1.0, 10.0))),
        dropped=3.0,
    )


FOUND = Interference(
    ("sft", "dpo", "code"),
    (
        *(layer(f"model.layers.{number}.q_proj", number / 20) for number in range(15)),
        layer("lm_head", 0.9, (0, 1)),
        layer("model.embed_tokens", 0.0, (2,)),
    ),
    0.1,
)


def sections(text: str) -> dict[str, dict[str, list[str]]]:
    """Title -> first word of a line -> its other words."""
    found = {}
    for part in text.split("\n\n"):
        first, *lines = part.splitlines()
        found[first.split("  ")[0]] = {words[0]: words[1:] for line in lines if (words := line.split())}
    return found


def test_matrices_over_all_layers() -> None:
    found = sections(interference_text(FOUND, layers=False))
    assert found["cosine"] == {"sft": ["0.600", "0.000"], "dpo": ["0.600", "0.000"], "code": ["0.000", "0.000"]}
    # 0, 0.05 ... 0.7 and 0.9, of equal magnitudes.
    assert found["sign conflict"]["sft"] == ["38.44%", "50.00%"]
    assert found["largest 0.1"]["dpo"] == ["30.00%", "10.00%"]
    assert found["layers in common"] == {
        "sft": ["16", "16", "15"],
        "dpo": ["16", "16", "15"],
        "code": ["15", "15", "16"],
    }
    alike = Interference(FOUND.names, FOUND.layers[:15], 0.1)
    assert "layers in common" not in interference_text(alike, layers=False)


def test_the_layers_that_conflict_most_come_first() -> None:
    text = interference_text(FOUND, layers=False)
    rows = list(sections(text)["layers that conflict most"].items())
    assert rows[0] == ("lm_head", ["100", "2", "0.600", "90.00%", "30.00%", "15.00%"])
    # Means over three pairs: (0.7 + 0.5 + 0.5) / 3.
    assert rows[1] == ("model.layers.14.q_proj", ["100", "3", "0.200", "56.67%", "16.67%", "10.00%"])
    assert [name for name, _ in rows[1:-1]] == [f"model.layers.{number}.q_proj" for number in range(14, 5, -1)]
    assert len(rows) == MOST + 1
    assert rows[-1][0] == "(means"


def test_every_layer_in_the_models_order() -> None:
    rows = sections(interference_text(FOUND, layers=True))["layer"]
    assert [name for name in rows if name != "(means"] == [one.module for one in FOUND.layers]
    assert rows["model.embed_tokens"] == ["100", "1", "-", "-", "-", "30.00%"]


def test_columns_stand_below_each_other() -> None:
    for part in interference_text(FOUND, layers=True).split("\n\n")[:-2]:
        lines = [line for line in part.splitlines() if not line.startswith(("(", "code"))]
        assert len({len(line) for line in lines}) == 1
        assert all(line == line.rstrip() for line in lines)


def test_the_meaning_is_arithmetic() -> None:
    one = Interference(("a", "b", "c"), (layer("q", 0.5),), 0.1)
    # Norm of the sum: sqrt(4 + 1 + 9 + 2 * 1.2); RMS of the norms: sqrt(14 / 3).
    assert "has 0.625 of their RMS norm" in meaning(one)
    assert "0.577 if orthogonal" in meaning(one)
    assert "their sum 1.875" in meaning(one)
    assert "would drop 10.00% of" in meaning(one)
    zero = LayerInterference(
        "q", 4, (0, 1), *[((0.0, 0.0),) * 2, (0.0, 0.0), ((0.0, 0.0),) * 2, ((0.0, 0.0),) * 2], 0.0
    )
    assert "nothing to merge" in interference_text(Interference(("a", "b"), (zero,), 0.1), layers=True)


def test_json_equals_the_tables() -> None:
    content = json.loads(json.dumps(interference_json(FOUND)))
    assert (content["untax"], content["top"]) == (__version__, 0.1)
    assert [one["name"] for one in content["adapters"]] == list(FOUND.names)
    tables = sections(interference_text(FOUND, layers=True))
    for one in content["overall"]["pairs"]:
        first, second = one["adapters"]
        place = second - 1
        name = FOUND.names[first]
        assert tables["cosine"][name][place] == signed(one["cosine"])
        assert tables["sign conflict"][name][place] == percent(one["sign_conflict"])
        assert tables["largest 0.1"][name][place] == percent(one["overlap"])
    assert [one["layers"] for one in content["overall"]["pairs"]] == [16, 15, 15]
    for one, own in zip(content["layers"], FOUND.layers, strict=True):
        assert (one["module"], one["adapters"]) == (own.module, list(own.adapters))
        assert len(one["pairs"]) == len(own.adapters) * (len(own.adapters) - 1) // 2
        assert tables["layer"][one["module"]][-1] == percent(one["dropped"])
    assert content["layers"][0]["frobenius"] == [2.0, 1.0, 3.0]
    assert content["layers"][-1]["l1"] == [10.0]


def test_json_has_what_is_said_about_an_adapter() -> None:
    found = Interference(FOUND.names, FOUND.layers, 0.1, ({"digest": "a"}, {"digest": "b"}, {"digest": "c"}))
    assert [one["digest"] for one in interference_json(found)["adapters"]] == ["a", "b", "c"]


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_same_numbers_give_the_same_picture(tmp_path: Path, ending: str, start: bytes) -> None:
    for name in "ab":
        draw_interference(tmp_path / f"{name}.{ending}", FOUND)
    first = (tmp_path / f"a.{ending}").read_bytes()
    assert first.startswith(start)
    assert first == (tmp_path / f"b.{ending}").read_bytes()
    draw_interference(tmp_path / f"c.{ending}", Interference(FOUND.names, FOUND.layers[1:], 0.1))
    assert first != (tmp_path / f"c.{ending}").read_bytes()


def test_the_maps_show_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    shown = []
    drawn = Axes.imshow

    def imshow(axes: Axes, table: list[list[float]], **options: object) -> object:
        shown.append(table)
        return drawn(axes, table, **options)

    monkeypatch.setattr(Axes, "imshow", imshow)
    draw_interference(tmp_path / "a.png", FOUND)
    cosine, cosine_by_layer, conflict, *_ = shown
    assert cosine[0][1] == cosine[1][0] == pytest.approx(0.6)
    assert cosine[0][0] != cosine[0][0]  # grey
    assert [len(cosine_by_layer), len(cosine_by_layer[0])] == [17, 3]
    assert conflict[0][2] == 0.5
    assert sum(value != value for row in cosine_by_layer for value in row) == 2 + 3


def test_names_are_no_formulas_and_may_be_many(tmp_path: Path) -> None:
    count = 12
    zeros = ((1.0,) * count,) * count
    one = LayerInterference("$\\frac$", 10, tuple(range(count)), zeros, (1.0,) * count, zeros, zeros, 0.0)
    names = tuple(f"$\\frac${number} and a long name" for number in range(count))
    draw_interference(tmp_path / "a.png", Interference(names, (one,), 0.1))
    assert (tmp_path / "a.png").stat().st_size > 10_000
