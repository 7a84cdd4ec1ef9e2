"""``untax eval`` as it is typed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import untax.demo
from untax.cli.eval import command
from untax.errors import UntaxError

BASE = str(Path(untax.demo.__file__).parent / "base")


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_two_models_then_nothing_to_do(tmp_path: Path) -> None:
    copy = shutil.copytree(BASE, tmp_path / "outputs" / "other")
    line = (BASE, str(copy), "--limit", "2", "--results", str(tmp_path / "results"), "--device", "cpu")
    output = invoke(*line)
    for name in ("base", "other"):
        assert (tmp_path / "results" / name / "demo.json").is_file()
        assert str(tmp_path / "results" / name / "demo.json") in output
    assert "untax_demo_gain" in output
    assert invoke(*line).count("already scored") == 2


def test_all_models_are_checked_before_one_is_scored(tmp_path: Path) -> None:
    with pytest.raises(UntaxError, match="no model folder"):
        invoke(BASE, str(tmp_path / "none"), "--limit", "1", "--results", str(tmp_path / "results"))
    assert not (tmp_path / "results").exists()


def test_two_models_with_one_name(tmp_path: Path) -> None:
    copy = shutil.copytree(BASE, tmp_path / "base")
    with pytest.raises(UntaxError, match="one results folder"):
        invoke(BASE, str(copy), "--limit", "1", "--results", str(tmp_path / "results"))


@pytest.mark.parametrize("size", ["0", "-1", "many"])
def test_batch_size(size: str, tmp_path: Path) -> None:
    with pytest.raises(UntaxError, match="batch size"):
        invoke(BASE, "--batch-size", size, "--results", str(tmp_path))


def test_unknown_suite() -> None:
    with pytest.raises(UntaxError, match="demo"):
        invoke(BASE, "--suite", "demos")
