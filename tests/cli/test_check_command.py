"""``untax check``: exit codes, text and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
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
                "lora_alpha": 8,
                "lora_target_linear": True,
                "sequence_len": 256,
                "learning_rate": 0.001,
                "micro_batch_size": 2,
                "num_epochs": 1,
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


@pytest.mark.parametrize("recipe", [None, "base: x\narms: {dtmm: {}}\n", "a: ["])
def test_json_of_a_recipe_that_is_wrong_or_missing(tmp_path: Path, recipe: str | None) -> None:
    if recipe is not None:
        (tmp_path / "untax.yaml").write_text(recipe)
    result = check(str(tmp_path if recipe else tmp_path / "gone"), "--json")
    assert result.exit_code == 2
    found = json.loads(result.stdout)
    assert found["failed"] is True
    [finding] = found["findings"]
    assert finding["state"] == "fail"
    assert "untax.yaml" in finding["where"]
    assert finding["text"]
    assert finding["fix"]


def test_yamls_that_differ_from_the_recipe_are_noted_each_for_what_it_is(tmp_path: Path, base_model: Path) -> None:
    make_folder(tmp_path, base_model)
    recipe = tmp_path / "untax.yaml"
    recipe.write_text(recipe.read_text().replace("lora_r: 4", "lora_r: 8"))
    config = tmp_path / "recipes" / "sft.yaml"

    def note() -> dict[str, str]:
        findings = json.loads(check(str(tmp_path), "--offline", "--json").stdout)["findings"]
        [finding] = [found for found in findings if "differs from what" in found["text"]]
        assert (finding["state"], finding["where"]) == ("note", "recipes/sft.yaml")
        assert "untax recipe --from untax.yaml" in finding["fix"]
        return finding

    assert note()["text"].startswith("older than untax.yaml: ")
    config.write_text(config.read_text().replace("lora_r: 4", "lora_r: 2"))
    assert note()["text"].startswith("edited by hand: ")
    assert "--force" in note()["fix"]
    (tmp_path / ".untax" / "generated.json").unlink()
    assert note()["text"].startswith("edited by hand, or older than untax.yaml: ")
