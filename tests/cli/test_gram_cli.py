"""``untax gram`` as a command: what it prints and writes, its mistakes, and its help."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from toys import sft_rows, write_jsonl
from untax.adapters.gram import Grams
from untax.cli.gram import command
from untax.errors import UntaxError
from untax.manifest import digest_json, read_manifest


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """The command silences what others log."""
    yield
    logging.disable(logging.NOTSET)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    (tmp_path / "stories.txt").write_text("\n---\n".join(f"Lily had {count} cats." for count in range(6)))
    return tmp_path / "stories.txt"


def test_it_writes_file_and_manifest(base_model: Path, stories: Path, tmp_path: Path) -> None:
    out = tmp_path / "gram.safetensors"
    done = run(base_model, "--data", stories, "-o", out, "--separator", r"\n---\n", "--samples", 4)
    assert done.exit_code == 0
    assert f"{out}: 35 layers, 20 matrices; 4 texts, " in done.stdout
    assert "gram: 100%" in done.stderr
    assert Grams(out).metadata["samples"] == "4"
    manifest = read_manifest(tmp_path, "gram.untax.json")
    assert manifest is not None
    assert manifest["what"] == "gram"
    with pytest.raises(UntaxError, match="there already"):
        run(base_model, "--data", stories, "-o", out)


def test_rows_are_prompted_and_their_prompts_count(base_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from untax.demo.demo import ALPACA_PROMPT

    (row,) = sft_rows(1)
    out = tmp_path / "gram.safetensors"
    run(base_model, "--data", write_jsonl(tmp_path / "rows.jsonl", [row]), "-o", out)
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    before = tokenizer(ALPACA_PROMPT.format(prompt=row["instruction"])).input_ids
    after = tokenizer(row["output"], add_special_tokens=False).input_ids
    told = Grams(out).metadata
    assert told["token_ids"] == digest_json([[before + after, len(before)]])
    assert told["tokens"] == str(len(before) + len(after))


def test_a_base_and_an_adapter(base_model: Path, stories: Path, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base_model), config).save_pretrained(tmp_path / "adapter")
    both, plain = tmp_path / "both.safetensors", tmp_path / "plain.safetensors"
    run(f"{base_model}+{tmp_path / 'adapter'}", "--data", stories, "-o", both)
    run(base_model, "--data", stories, "-o", plain)
    assert len(Grams(both).metadata["adapter"]) == 64
    # What goes into the first layer is the base's; what goes into later ones is not.
    first, second = (Grams(path) for path in (both, plain))
    for layer, same in ((0, True), (1, False)):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        assert bool((first.gram(name) == second.gram(name)).all()) == same


def test_mistakes_are_said(base_model: Path, stories: Path, tmp_path: Path) -> None:
    with pytest.raises(UntaxError, match="no such data file"):
        run(base_model, "--data", tmp_path / "none.txt", "-o", tmp_path / "g.safetensors")
    with pytest.raises(UntaxError, match=r"is a \.safetensors file") as error:
        run(base_model, "--data", stories, "-o", tmp_path / "g.pt")
    assert error.value.fix == "Name it g.safetensors."
    assert run(base_model, "--data", stories, "-o", tmp_path / "g.safetensors", "--samples", 0).exit_code == 2


def test_the_help_says_what_g_is_without_torch() -> None:
    program = (
        "import sys; from untax.cli.gram import command\n"
        "try: command(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "G = X^T X / (number of tokens)" in " ".join(found.split())
