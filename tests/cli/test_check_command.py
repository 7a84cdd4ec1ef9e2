"""``untax check``: exit codes, text and JSON."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from toys import sft_rows, write_jsonl
from untax.cli.main import cli
from untax.recipes.spec import check_spec
from untax.recipes.write import write_run_folder


def make_folder(folder: Path, base: Path) -> None:
    write_jsonl(folder / "sft.jsonl", sft_rows(30))
    content = {
        "base": str(base),
        "device": "cpu",
        "sft": [{"path": "sft.jsonl", "type": "alpaca"}],
        "arms": {"vanilla": {}},
        "training": {
            "sft": {
                "adapter": "lora",
                "lora_r": 4,
                "lora_target_linear": True,
                "sequence_len": 256,
                "special_tokens": {"pad_token": "<unk>"},
            }
        },
    }
    write_run_folder(check_spec(content, where="test"), folder)


def check(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["check", *arguments])


def test_text(tmp_path: Path, base_model: Path) -> None:
    make_folder(tmp_path, base_model)
    result = check(str(tmp_path), "--offline")
    assert result.exit_code == 0, result.output
    for part in ("Rows in tokens", "Memory and hours", "Disk:", "What would run: 2 of 2 nodes", "0 fail"):
        assert part in result.stdout
    row = next(line for line in result.stdout.splitlines() if line.split()[:1] == ["sft"])
    assert row.split()[1] == "30"


def test_json(tmp_path: Path, base_model: Path) -> None:
    make_folder(tmp_path, base_model)
    result = check(str(tmp_path), "--offline", "--json", "--rows", "10")
    found = json.loads(result.stdout)
    assert found["failed"] is False
    [training] = found["trainings"]
    assert training["lengths"]["looked_at"] == 10
    assert training["memory"]["total"] >= training["memory"]["weights"] == 4 * 260_032
    assert set(training["lengths"]["quantiles"]) == {"0.5", "0.9", "0.99"}
    assert found["disk"]["total"] == sum(value for key, value in found["disk"].items() if key != "total")
    assert [due["node"] for due in found["due"]] == ["sft", "vanilla"]


def test_failure(tmp_path: Path, base_model: Path) -> None:
    make_folder(tmp_path, base_model)
    (tmp_path / "sft.jsonl").unlink()
    result = check(str(tmp_path), "--offline")
    assert result.exit_code == 2
    assert "there is no sft.jsonl" in result.stdout
    assert "this run would fail" in result.stdout
