"""The tables, the JSON and the figure of interference say the same."""

from __future__ import annotations

import json
from dataclasses import replace
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
        dropped=tuple(there[number] * lost for number, lost in enumerate((0.5, 2.0, 0.5))),
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
    assert rows[0] == ("lm_head", ["100", "2", "0.600", "90.00%", "30.00%", "5.00%/20.00%/-"])
    # Means over three pairs: (0.7 + 0.5 + 0.5) / 3.
    assert rows[1] == ("model.layers.14.q_proj", ["100", "3", "0.200", "56.67%", "16.67%", "5.00%/20.00%/5.00%"])
    assert [name for name, _ in rows[1:-1]] == [f"model.layers.{number}.q_proj" for number in range(14, 5, -1)]
    assert len(rows) == MOST + 1
    assert rows[-1][0] == "(means"


def test_every_layer_in_the_models_order() -> None:
    rows = sections(interference_text(FOUND, layers=True))["layer"]
    assert [name for name in rows if name != "(means"] == [one.module for one in FOUND.layers]
    assert rows["model.embed_tokens"] == ["100", "1", "-", "-", "-", "-/-/5.00%"]


def test_columns_stand_below_each_other() -> None:
    for part in interference_text(FOUND, layers=True).split("\n\n")[:-2]:
        lines = [line for line in part.splitlines() if not line.startswith(("(", "code"))]
        assert len({len(line) for line in lines}) == 1
        assert all(line == line.rstrip() for line in lines)


def test_the_meaning_is_arithmetic() -> None:
    one = Interference(("a", "b", "c"), (layer("q", 0.5),), 0.1)
    said = " ".join(meaning(one).split())
    assert "that of c is 3.00 times that of b" in said
    assert "these weights: a 1.50, b 3.00, c 1.00." in said
    # Norm of the sum: sqrt(4 + 1 + 9 + 2 * 1.2).
    assert "have the norm 4.050; orthogonal ones would have 3.742, and c alone has 3.000. " in said
    assert "plain mean (linear) has 1.350." in said
    assert "own magnitude: a 5.00%, b 20.00%, c 5.00%." in said


def nothing(number: int, *norms: float) -> LayerInterference:
    """Deltas of these norms; all else is zero."""
    count = len(norms)
    inner = tuple(tuple(norm**2 * (i == j) for j in range(count)) for i, norm in enumerate(norms))
    zeros = ((0.0,) * count,) * count
    return LayerInterference(f"q{number}", 4, tuple(range(count)), inner, norms, zeros, zeros, (0.0,) * count)


def test_deltas_of_zeros_are_named() -> None:
    text = interference_text(Interference(("a", "b"), (nothing(0, 0.0, 0.0),), 0.1), layers=True)
    assert "nothing to merge" in text
    said = meaning(Interference(("a", "b"), (nothing(0, 2.0, 0.0),), 0.1))
    assert "b: all zeros" in said
    assert "weights:" not in said
    assert "a 0.00%, b -." in said


def test_of_many_adapters_a_layer_has_one_share() -> None:
    many = Interference(tuple("abcde"), (nothing(0, 1.0, 2.0, 3.0, 4.0, 5.0),), 0.1)
    text = interference_text(many, layers=True)
    assert sections(text)["layer"]["q0"][-1] == "0.00%"
    assert "dropped: of all adapters together" in text


def test_each_adapter_by_itself() -> None:
    found = sections(interference_text(FOUND, layers=False))["adapter"]
    # 16 layers of 100 elements with a norm of 2, 1 or 3, and |delta| of 10 each.
    assert found == {
        "sft": ["8.000", "0.100", "5.00%"],
        "dpo": ["4.000", "0.100", "20.00%"],
        "code": ["12.00", "0.100", "5.00%"],
    }
    content = interference_json(FOUND)["adapters"][1]
    assert content == {
        "name": "dpo",
        "layers": 16,
        "elements": 1600,
        "frobenius": 4.0,
        "l1": 160.0,
        "mean_magnitude": 0.1,
        "rms": 0.1,
        "dropped": 0.2,
    }


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
        shares = dict(zip(one["adapters"], one["dropped_of_each"], strict=True))
        shown = "/".join(percent(shares.get(number)) for number in range(3))
        assert tables["layer"][one["module"]][-1] == shown
        assert one["dropped"] == sum(own.dropped) / sum(own.l1)
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
    cosine, cosine_by_layer, conflict, *_, dropped = shown
    assert dropped[0] == [0.05, 0.2, 0.05]
    assert [share != share for share in dropped[-1]] == [True, True, False]
    assert cosine[0][1] == cosine[1][0] == pytest.approx(0.6)
    assert cosine[0][0] != cosine[0][0]  # grey
    assert [len(cosine_by_layer), len(cosine_by_layer[0])] == [17, 3]
    assert conflict[0][2] == 0.5
    assert sum(value != value for row in cosine_by_layer for value in row) == 2 + 3


def test_names_are_no_formulas_and_may_be_many(tmp_path: Path) -> None:
    count = 12
    zeros = ((1.0,) * count,) * count
    one = LayerInterference("$\\frac$", 10, tuple(range(count)), zeros, (1.0,) * count, zeros, zeros, (0.0,) * count)
    names = tuple(f"$\\frac${number} and a long name" for number in range(count))
    draw_interference(tmp_path / "a.png", Interference(names, (one,), 0.1))
    assert (tmp_path / "a.png").stat().st_size > 10_000


def two(*conflicts: float) -> Interference:
    """The first two adapters of ``layer``."""

    def cut(rows: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        return tuple(row[:2] for row in rows[:2])

    layers = []
    for number, conflict in enumerate(conflicts):
        one = layer(f"q{number}", conflict, (0, 1))
        matrices = {name: cut(getattr(one, name)) for name in ("inner", "conflict", "largest")}
        layers.append(replace(one, l1=one.l1[:2], dropped=one.dropped[:2], **matrices))
    return Interference(("sft", "dpo"), tuple(layers), 0.1)


def test_a_pair_is_drawn_as_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    bars: list[tuple[float, float]] = []
    dots: dict[str, list[float]] = {}
    barh, plot = Axes.barh, Axes.plot

    def seen_bar(axes: Axes, place: float, width: float, *, left: float, **options: object) -> object:
        bars.append((left, left + width))
        return barh(axes, place, width, left=left, **options)  # type: ignore[arg-type]

    def seen_dots(axes: Axes, *arguments: object, label: str, **options: object) -> object:
        dots[label] = list(arguments[0])  # type: ignore[call-overload]
        return plot(axes, *arguments, label=label, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Axes, "barh", seen_bar)
    monkeypatch.setattr(Axes, "plot", seen_dots)
    draw_interference(tmp_path / "a.svg", two(0.25, 0.75))
    expected = [(0.0, 0.6), (0.0, 0.6), (0.5, 0.25), (0.5, 0.75), (0.1, 0.3), (0.1, 0.3)]
    assert bars == [pytest.approx(bar) for bar in expected]
    assert dots == {
        "sft: norm 2.828, 5.00% dropped": [0.05, 0.05],
        "dpo: norm 1.414, 20.00% dropped": [0.2, 0.2],
    }
    draw_interference(tmp_path / "b.svg", two(0.25, 0.75))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
