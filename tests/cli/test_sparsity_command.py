"""``untax sparsity``: tables, files, exit codes, where the base comes from, and no torch for --help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_adapters import THEIR_BASE, TWO_LAYERS, write_adapter, write_model
from untax.cli import sparsity
from untax.cli.main import main


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base", THEIR_BASE)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", TWO_LAYERS, base_model_name_or_path="base")


Captured = pytest.CaptureFixture[str]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["untax", "sparsity", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def cells(output: str, name: str) -> list[str]:
    return next(line for line in output.splitlines() if line.split()[:1] == [name]).split()[1:]


def test_the_adapters_own_base(adapter: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    assert (
        run(monkeypatch, adapter, "--threshold", 8, "--relative", 2.5, "--json", "out/all.json", "--plot", "p.png") == 0
    )
    output = capsys.readouterr()
    assert cells(output.out, "adapter")[2:8] == ["56.25%", "50.00%", "56.25%", "50.00%", "31.25%", "25.00%"]
    assert cells(output.out, "down_proj")[2:4] == ["37.50%", "37.50%"]
    assert output.err == ""
    content = json.loads(Path("out/all.json").read_text())
    (one,) = content["adapters"]
    assert content["thresholds"] == {"absolute": 8.0, "relative": 2.5}
    assert (one["overall"]["mean_below"], one["overall"]["below"]) == (0.5625, 0.5)
    assert (one["kind"], one["folder"], one["no_relative"], one["not_counted"]) == ("lora", str(adapter), None, [])
    assert one["base"]["folder"] == "base"
    assert len(one["digest"]) == len(one["base"]["identity"]) == 64
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")


def test_the_digests_are_those_of_manifests(
    adapter: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    from untax.adapters.stored import ADAPTER_FILES
    from untax.manifest import digest_files, digest_model

    assert run(monkeypatch, adapter, "--json", "all.json") == 0
    (one,) = json.loads(Path("all.json").read_text())["adapters"]
    assert one["digest"] == digest_files(adapter, ADAPTER_FILES)
    assert one["base"]["identity"] == digest_model(base)


def test_a_base_that_is_not_at_hand(adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    assert run(monkeypatch, adapter) == 0
    output = capsys.readouterr().out
    assert cells(output, "adapter")[4:6] == ["-", "-"]
    assert (
        "adapter: nothing relative to the base: its base base is neither a folder here nor in the hub's cache" in output
    )
    assert "--base MODEL" in output


def test_a_base_that_is_named(adapter: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    other = base.rename(base.parent / "elsewhere")
    assert run(monkeypatch, adapter, "--base", other, "--relative", 2.5) == 0
    assert cells(capsys.readouterr().out, "adapter")[4:6] == ["56.25%", "50.00%"]


def test_without_a_base_on_purpose(
    adapter: Path, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    assert run(monkeypatch, adapter, "--no-base") == 0
    output = capsys.readouterr().out
    assert cells(output, "adapter")[4:6] == ["-", "-"]
    assert "nothing relative" not in output
    assert run(monkeypatch, adapter, "--no-base", "--base", base) == 2


def test_several_with_what_is_not_counted(
    adapter: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    import torch

    others = {f"base_model.model.bias.{number}": torch.ones(1) for number in range(5)}
    second = write_adapter(tmp_path / "second", TWO_LAYERS, others, base_model_name_or_path="base")
    assert run(monkeypatch, adapter, second, "--layers", "--blocks") == 0
    output = capsys.readouterr().out
    assert "second: not counted, trained beside the factors: base_model.model.bias.0, " in output
    assert "bias.2 and 2 more" in output
    assert cells(output, "q_proj") == ["50.00%", "50.00%"] * 2
    assert cells(output, "11") == cells(output, "model.layers.11.mlp.down_proj") == ["12.50%", "12.50%"] * 2


def test_folders_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    for parent in ("a", "b"):
        write_adapter(tmp_path / parent / "checkpoint-9", TWO_LAYERS)
    assert run(monkeypatch, "a/checkpoint-9", "b/checkpoint-9/") == 0
    output = capsys.readouterr().out
    assert cells(output, "a/checkpoint-9") == cells(output, "b/checkpoint-9")


def test_a_whole_model(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    tuned = write_model(tmp_path / "tuned", {**THEIR_BASE, "model.norm.weight": [1.5]})
    assert run(monkeypatch, tuned) == 2
    assert "beside its base" in capsys.readouterr().err
    assert run(monkeypatch, tuned, "--base", base, "--json", "all.json") == 0
    assert cells(capsys.readouterr().out, "norm")[2:9] == [*["0.00%"] * 6, "0.5"]
    (one,) = json.loads(Path("all.json").read_text())["adapters"]
    assert one["kind"] == "model"
    assert one["overall"]["mean_below"] == 2 / 3


def test_an_adapter_beside_a_whole_base_is_an_adapter(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    write_model(adapter, THEIR_BASE)
    assert run(monkeypatch, adapter) == 0
    assert cells(capsys.readouterr().out, "adapter")[:2] == ["2", "12"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no such adapter folder"),
        (["adapter", "nowhere"], "no such adapter folder"),
        (["adapter", "--base", "no/base"], "no such base"),
        (["adapter", "--base", "/no/base/at/all"], "no such base"),
        (["adapter", "--threshold", "0"], "above zero"),
        (["adapter", "--threshold", "nan"], "above zero"),
        (["adapter", "--threshold", "inf"], "above zero"),
        (["adapter", "--relative", "-1"], "above zero"),
        (["adapter", "--plot", "figure.pdf"], "in .png or .svg"),
        ([], "Missing argument"),
    ],
)
def test_errors(
    arguments: list[str], message: str, adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    assert run(monkeypatch, *arguments) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""
    assert "Traceback" not in output.err


def test_files_of_an_adapter_that_are_broken(adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert run(monkeypatch, adapter) == 2
    assert "cut off" in capsys.readouterr().err
    weights.rename(adapter / "adapter_model.bin")
    assert run(monkeypatch, adapter) == 2
    assert "pickle" in capsys.readouterr().err


def test_a_bar_where_it_takes_long(adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(sparsity, "PROGRESS_ELEMENTS", 12)
    assert run(monkeypatch, adapter) == 0
    output = capsys.readouterr()
    assert "12.0/12.0" in output.err
    assert "Measuring" not in output.out


def test_help_and_refusals_need_nothing_heavy(adapter: Path) -> None:
    program = "import sys\nfrom untax.cli.main import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
    program += "print(sorted({'torch', 'numpy', 'matplotlib', 'peft', 'huggingface_hub'} & set(sys.modules)))"
    for arguments in (["--help"], ["nowhere"], [str(adapter), "--plot", "a.pdf"]):
        process = subprocess.run(
            [sys.executable, "-c", program, "sparsity", *arguments], capture_output=True, text=True, check=True
        )
        assert process.stdout.endswith("[]\n")
