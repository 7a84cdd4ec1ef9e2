"""``untax fisher`` as a command: what it prints, its exit codes, and that its help says what F is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tiny_adapters import TWO_LAYERS, write_adapter
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
    assert f"Loading {base_model} ..." in said
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


@pytest.mark.parametrize("command", ["fisher", "gram"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "rows.jsonl", "--column", "story", "-o", "f.safetensors"], "no column 'story', only "),
        (["--data", "rows.jsonl", "-o", "there.safetensors"], "there already"),
        (["--data", "rows.jsonl", "--device", "cuda", "-o", "f.safetensors"], "no GPU"),
    ],
)
def test_mistakes_are_said_before_anything_slow(
    tmp_path: Path, command: str, arguments: list[str], expected: str
) -> None:
    """Before the model is looked for, which is not there; and nothing large is imported."""
    import torch

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    write_jsonl(tmp_path / "rows.jsonl", sft_rows(2))
    (tmp_path / "there.safetensors").touch()
    program = (
        f"import sys; sys.argv = ['untax', {command!r}, 'no/such/model', *{arguments!r}]\n"
        "from untax.cli.main import main\n"
        "try: main()\n"
        "finally: print([name for name in ('torch', 'transformers', 'axolotl', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert expected in done.stderr


@pytest.mark.parametrize("content", ['{"text": "one"}\n{"text": \n', ""])
def test_fixes_are_those_of_the_command(capsys: Any, base_model: Path, tmp_path: Path, out: Path, content: str) -> None:
    """Not keys of Axolotl's YAMLs, nor of a merge's."""
    (tmp_path / "rows.jsonl").write_text(content)
    said = run(capsys, base_model, "--data", tmp_path / "rows.jsonl", "-o", out, code=2)
    assert f"where: --data {tmp_path / 'rows.jsonl'}" in said
    assert "`split:`" not in said
    assert "key data" not in said


def test_an_adapter_alone_is_no_model(capsys: Any, stories: Path, tmp_path: Path, out: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", TWO_LAYERS)
    said = run(capsys, adapter, "--data", stories, "-o", out, code=2)
    assert "Name it as base+adapter" in said
    assert "YAML" not in said


def test_the_base_of_another_adapter(capsys: Any, base_model: Path, stories: Path, tmp_path: Path, out: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    config = peft.LoraConfig(r=1, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapter = tmp_path / "adapter"
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base_model), config).save_pretrained(adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "org/other"}))
    said = run(capsys, f"{base_model}+{adapter}", "--data", stories, "-o", out, code=2)
    assert "trained on another base (org/other)" in said
    assert "base_model_name_or_path in its adapter_config.json" in said
    assert "--allow-crimes" not in said
    # The fix is one.
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(base_model)}))
    run(capsys, f"{base_model}+{adapter}", "--data", stories, "-o", out, "--samples", 1)


def test_the_help_says_what_f_is_without_torch() -> None:
    program = (
        "import sys; sys.argv = ['untax', 'fisher', '--help']\n"
        "from untax.cli.main import main\n"
        "try: main()\nfinally: assert 'torch' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "F_j = 1/N * sum over n of (d log p(x_n) / d theta_j)^2" in " ".join(found.split())
    assert "(empirical Fisher)" in " ".join(found.split())
