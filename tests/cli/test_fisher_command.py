"""``untax fisher`` as a command: what it prints, its exit codes, and that its help says what F is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from toys import sft_rows, write_jsonl
from untax.adapters.statistics import Diagonal
from untax.cli.main import main
from untax.manifest import read_manifest


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """What was printed to either stream."""
    saved = sys.argv
    sys.argv = ["untax", "fisher", *map(str, arguments)]
    status: object = 0
    try:
        main()
    except SystemExit as stop:
        status = stop.code
    finally:
        sys.argv = saved
    captured = capsys.readouterr()
    assert status == code, captured
    return captured.out + captured.err


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command silences what others log."""
    import logging

    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    (tmp_path / "stories.txt").write_text(
        "\n---\n".join(f"Lily had {count} cats.\n\nShe was glad." for count in range(6))
    )
    return tmp_path / "stories.txt"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "fisher.safetensors"


def test_it_writes_file_and_manifest(capsys: Any, base_model: Path, stories: Path, out: Path) -> None:
    said = run(capsys, base_model, "--data", stories, "-o", out, "--separator", r"\n---\n", "--samples", 4)
    assert f"{out}: 35 tensors, 226,560 numbers, mean " in said
    assert "4 texts, " in said
    assert "Warning" not in said
    assert Diagonal(out).metadata["samples"] == "4"
    manifest = read_manifest(out.parent, "fisher.untax.json")
    assert manifest is not None
    assert manifest["command"][:2] == ["untax", "fisher"]
    assert "there already" in run(capsys, base_model, "--data", stories, "-o", out, code=2)


def test_rows_are_prompted_as_in_training(capsys: Any, base_model: Path, tmp_path: Path, out: Path) -> None:
    from transformers import AutoTokenizer

    from untax.demo.demo import ALPACA_PROMPT
    from untax.manifest import digest_json

    (row,) = sft_rows(1)
    data = write_jsonl(tmp_path / "rows.jsonl", [row])
    said = run(capsys, base_model, "--data", data, "-o", out, "--modules", "all", "--labels", "model")
    assert "Warning: there are only 1 texts for 256 samples" in said
    assert "47 tensors" in said
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    before = tokenizer(ALPACA_PROMPT.format(prompt=row["instruction"])).input_ids
    after = tokenizer(row["output"], add_special_tokens=False).input_ids
    assert Diagonal(out).metadata["token_ids"] == digest_json([[before + after, len(before)]])


def test_a_base_and_an_adapter(capsys: Any, base_model: Path, stories: Path, tmp_path: Path, out: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base_model), config).save_pretrained(tmp_path / "adapter")
    model = f"{base_model}+{tmp_path / 'adapter'}"
    run(capsys, model, "--data", stories, "-o", out, "--samples", 1)
    assert "adapter" in Diagonal(out).metadata
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    said = run(capsys, model, "--data", stories, "-o", out, "--force", code=2)
    assert "has no adapter_model.safetensors" in said


@pytest.mark.parametrize(
    ("model", "arguments", "expected"),
    [
        ("missing", [], "There is no such folder"),
        (None, ["--data", "missing.txt"], "no such data file"),
        (None, ["--column", "story"], "no column 'story'"),
        (None, ["--device", "cuda"], "no GPU"),
        (None, ["--labels", "own"], "'own' is not one of"),
        (None, ["--samples", "0"], "0 is not in the range"),
        (None, ["-o", "f.pt"], "Name it f.safetensors"),
    ],
)
def test_mistakes_are_said(
    capsys: Any,
    base_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str | None,
    arguments: list[str],
    expected: str,
) -> None:
    import torch

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", sft_rows(2))
    given = ["--data", "rows.jsonl", "-o", "f.safetensors", *arguments]
    assert expected in run(capsys, model or base_model, *given, code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_the_help_says_what_f_is_without_torch() -> None:
    program = (
        "import sys; sys.argv = ['untax', 'fisher', '--help']\n"
        "from untax.cli.main import main\n"
        "try: main()\nfinally: assert 'torch' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "F_j = 1/N * sum over n of (d log p(x_n) / d theta_j)^2" in " ".join(found.split())
    assert "(empirical Fisher)" in " ".join(found.split())
