"""``untax merge`` as a command: options in any order, exit codes, plain errors, and no torch for --help."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from untax.cli.main import main
from untax.cli.merge import command
from untax.merge.options import SHORT, VALUES


def run(*arguments: str, code: int = 0) -> None:
    saved = sys.argv
    sys.argv = ["untax", *arguments]
    try:
        main()
        status: object = 0
    except SystemExit as stop:
        status = stop.code
    finally:
        sys.argv = saved
    assert status == code


@pytest.fixture
def merge_yaml(tmp_path: Path, base_model: Path) -> Path:
    path = tmp_path / "merge.yaml"
    path.write_text(f"merge_method: linear\nmodels:\n- model: {base_model}\n  parameters: {{weight: 1.0}}\n")
    return path


def test_every_option_with_a_value_is_known_here() -> None:
    """An unknown one would let its value be taken for CONFIG_FILE."""
    from mergekit.scripts.run_yaml import main as stock

    wanted = {
        option.name: tuple(option.opts)
        for option in stock.params
        if option.param_type_name == "option" and not option.is_flag and not option.count
    }
    known = {name: (f"--{name.replace('_', '-')}", *([SHORT[name]] if name in SHORT else [])) for name in VALUES}
    assert known == wanted


def test_options_in_any_order(merge_yaml: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("merge", "--random-seed", "7", "--quiet", str(merge_yaml), "-j", "1", str(out), "--out-shard-size=100K")
    shards = sorted(file.name for file in out.glob("*.safetensors"))
    assert len(shards) > 1
    assert '"seed": 7' in (out / "untax.json").read_text()
    assert '"out_shard_size=100000"' in (out / "untax.json").read_text()
    run("merge", str(merge_yaml), str(out), "--out-shard-size", "100K", "--random-seed=7")  # the same merge
    run("merge", str(merge_yaml), str(out), code=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-such-option"], "No such option"),
        (["--random-seed", "x"], "not a valid integer"),
        (["third"], "Two paths are needed"),
    ],
)
def test_bad_options(
    arguments: list[str], message: str, merge_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("merge", str(merge_yaml), str(tmp_path / "out"), *arguments, code=2)
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [merge_yaml]


def test_error_is_plain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("merge", str(tmp_path / "none.yaml"), str(tmp_path / "out"), code=2)
    error = capsys.readouterr().err
    assert error.startswith("untax: error: There is no such merge configuration.")
    assert str(tmp_path / "none.yaml") in error
    assert "Traceback" not in error


def test_help_and_refusals_need_neither_torch_nor_mergekit(tmp_path: Path) -> None:
    assert "mergekit-yaml --help" in CliRunner().invoke(command, ["--help"]).output
    program = "import sys\nfrom untax.cli.main import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
    program += "print(sorted({'torch', 'mergekit', 'peft', 'transformers'} & set(sys.modules)))"
    for arguments in (["--help"], ["none.yaml", "out"]):
        process = subprocess.run(
            [sys.executable, "-c", program, "merge", *arguments], capture_output=True, text=True, env={**os.environ}
        )
        assert process.stdout.endswith("[]\n")
