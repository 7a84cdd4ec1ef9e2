"""``untax interference``: tables, files, notes and errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tiny_adapters import TWO_LAYERS, write_adapter
from untax.cli import interference
from untax.errors import UntaxError

Q_PROJ, DOWN_PROJ = TWO_LAYERS


def run(*arguments: object) -> Result:
    return CliRunner().invoke(interference.command, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.chdir(tmp_path)
    # The first layer's delta is turned round: 8, -6 beside 6, -8; the second's has the opposite sign.
    other = {Q_PROJ: ([[1.0], [0.0]], [[4.0, -3.0]]), DOWN_PROJ: ([[-0.5]], TWO_LAYERS[DOWN_PROJ][1])}
    return write_adapter(tmp_path / "sft", TWO_LAYERS), write_adapter(tmp_path / "dpo", other)


def test_tables_and_files(adapters: tuple[Path, Path]) -> None:
    done = run(*adapters, "--layers", "--json", "out/all.json", "--figure", "heat.svg")
    assert done.exit_code == 0
    lines = {line.split()[0]: line.split()[1:] for line in done.output.splitlines() if line}
    assert lines[Q_PROJ] == ["4", "2", "0.960", "0.00%", "0.00%", "0.00%/0.00%"]
    # Sums of zero elect +: 2 of 48 are negative in the one, 46 in the other.
    assert lines[DOWN_PROJ] == ["8", "2", "-1.000", "100.00%", "100.00%", "4.17%/95.83%"]
    content = json.loads(Path("out/all.json").read_text())
    (pair,) = content["overall"]["pairs"]
    assert pair["cosine"] == pytest.approx((96 - 412) / (100 + 412))
    assert pair["sign_conflict"] == pytest.approx(96 / (28 + 96))
    assert [one["name"] for one in content["adapters"]] == ["sft", "dpo"]
    assert [len(one["digest"]) for one in content["adapters"]] == [64, 64]
    assert Path("heat.svg").read_text().startswith("<?xml")


def test_the_share_of_the_largest(adapters: tuple[Path, Path]) -> None:
    # Half of 6, 8, 0, 0 and of 8, 6, 0, 0 is the same half.
    lines = run(*adapters, "--top", 0.5, "--layers").output.splitlines()
    (q_proj,) = [line.split() for line in lines if line.startswith(Q_PROJ)]
    assert q_proj[5] == "100.00%"
    assert run(*adapters, "--top", 1.5).exit_code == 2


def test_what_else_there_is_to_say(adapters: tuple[Path, Path], tmp_path: Path) -> None:
    import torch

    others = {f"base_model.model.bias.{number}": torch.ones(1) for number in range(5)}
    third = write_adapter(tmp_path / "x" / "sft", TWO_LAYERS, others, base_model_name_or_path="org/a")
    fourth = write_adapter(tmp_path / "y" / "sft", TWO_LAYERS, base_model_name_or_path="org/b")
    output = run("x/sft", "y/sft").output
    assert "x/sft: not counted, trained beside the factors: base_model.model.bias.0, " in output
    assert "bias.2 and 2 more" in output
    assert output.startswith("Note: Trained on x/sft on org/a, y/sft on org/b")
    assert output.index("not counted") < output.index("cosine")
    assert (third, fourth) != adapters


def test_errors_come_before_the_work(adapters: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UntaxError, match="PNG or an SVG"):
        run(*adapters, "--figure", "heat.pdf")
    with pytest.raises(UntaxError, match="no other"):
        run(adapters[0])
    with pytest.raises(UntaxError, match="no such adapter folder"):
        run(adapters[0], tmp_path / "none")
    assert run().exit_code == 2


def test_progress_from_seconds_of_work_on(adapters: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Measuring" not in run(*adapters).stderr
    monkeypatch.setattr(interference, "PROGRESS_ELEMENTS", 1)
    assert "24.0/24.0" in run(*adapters).stderr


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, untax.cli.interference; sys.exit({'torch', 'matplotlib', 'numpy'} & set(sys.modules) != set())"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
