"""`untax recipe`: what its options write, what they refuse, and the loop of editing and expanding again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from untax.cli.main import cli
from untax.errors import UntaxError
from untax.recipes.presets import PRESETS, ZEPHYR_TEMPLATE


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sft.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 40)


def recipe(*arguments: str) -> Result:
    found = CliRunner().invoke(cli, ["recipe", *arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


def dtm(*arguments: str, out: str = "run") -> Result:
    return recipe("dtm", "--base", "org/base", "--dataset", "sft.jsonl", "-o", out, *arguments)


def paft(*arguments: str) -> Result:
    data = ("--sft", "HuggingFaceH4/ultrachat_200k", "--preference", "HuggingFaceH4/ultrafeedback_binarized")
    return recipe("paft", "--base", "mistralai/Mistral-7B-v0.1", *data, "-o", "run", *arguments)


def written(name: str) -> Any:
    return yaml.safe_load(Path("run", name).read_text())


def test_the_papers_recipe_can_be_typed() -> None:
    """The options give what the checked-in recipe of the paper has."""
    options = ("--sft-split", "train_sft", "--preference-split", "train_prefs", "--chat-template", "zephyr")
    paft(*options, "--pad-token", "</s>")
    preset = PRESETS["paft-mistral-7b-zephyr"]
    spec = written("untax.yaml")
    assert spec["training"] == preset["training"]
    assert spec["preference"] == preset["preference"]
    assert spec["sft"][0]["split"] == "train_sft"
    for name in ("sft-sparse", "dpo"):
        training = written(f"recipes/{name}.yaml")
        assert training["chat_template_jinja"] == ZEPHYR_TEMPLATE
        assert training["special_tokens"] == {"pad_token": "</s>"}


def test_what_is_not_given_is_not_written() -> None:
    paft()
    spec = written("untax.yaml")
    assert "split" not in spec["sft"][0] | spec["preference"][0]
    for training in spec["training"].values():
        assert not {"chat_template", "chat_template_jinja", "special_tokens"} & set(training)


def test_a_template_of_axolotl() -> None:
    paft("--chat-template", "chatml")
    assert [training["chat_template"] for training in written("untax.yaml")["training"].values()] == ["chatml"] * 2


def test_split_and_padding_token_of_dtm() -> None:
    dtm("--split", "train[:50%]", "--pad-token", "<unk>")
    training = written("recipes/cluster-0.yaml")
    assert training["datasets"][0]["split"] == "train[:50%]"
    assert training["special_tokens"] == {"pad_token": "<unk>"}


def test_all_wrong_options_at_once() -> None:
    Path("model.gguf").write_text("x")
    Path("empty.jsonl").touch()
    wrong = ("--strategy", "randm", "--suite", "dmo", "--merge", "averge", "--dataset", "empty.jsonl")
    with pytest.raises(UntaxError) as caught:
        recipe("dtm", "--base", "model.gguf", "--dataset", "sft.jsonl", "-o", "run", *wrong)
    for part in ("'random'", "'demo'", "'average'", "empty.jsonl is empty", "../model.gguf is a file"):
        assert part in str(caught.value)
    assert not Path("run").exists()


def test_more_clusters_than_rows_are_refused() -> None:
    with pytest.raises(UntaxError, match="41 clusters of 40 rows"):
        dtm("-k", "41")
    assert not Path("run").exists()


def test_a_warm_up_of_most_steps_is_noticed() -> None:
    found = dtm("--with-vanilla")
    assert found.exit_code == 0
    assert "each cluster's training has about 2 steps, and warmup_steps is 100" in found.stderr
    assert "SFT on all rows has about 8 steps" in found.stderr
    Path("sft.jsonl").write_text("{}\n" * 5000)
    assert dtm(out="other").stderr == ""  # 937 steps


def test_edit_and_expand_again() -> None:
    dtm("--with-vanilla")
    spec = Path("run/untax.yaml")
    kept = Path("run/recipes/sft.yaml").read_text()
    spec.write_text(spec.read_text().replace("clusters: 4", "clusters: 3  # enough"))
    recipe("--from", "run/untax.yaml")
    assert "# enough" in spec.read_text()
    assert written("recipes/cluster-0.yaml")["disperse_clusters"] == 3
    assert not Path("run/recipes/cluster-3.yaml").exists()
    assert Path("run/recipes/sft.yaml").read_text() == kept
    assert "recipes/cluster-3.yaml" not in json.loads(Path("run/.untax/generated.json").read_text())


def test_another_recipe_in_the_folder_is_refused() -> None:
    dtm()
    with pytest.raises(UntaxError, match="another run"):
        dtm("-k", "3")
    Path("mine.yaml").write_text(
        Path("run/untax.yaml").read_text().replace("clusters: 4", "clusters: 3").replace("../", "")
    )
    with pytest.raises(UntaxError, match=r"another run(.|\n)*untax\.yaml"):
        recipe("--from", "mine.yaml", "-o", "run")
    assert dtm("-k", "3", "--force").exit_code == 0
    assert written("untax.yaml")["arms"]["dtm"]["clusters"] == 3


def test_printed_commands_can_be_pasted() -> None:
    found = dtm(out="my run")
    line = next(line for line in found.stdout.splitlines() if "untax run" in line)
    assert shlex.split(line.partition(":")[2])[:3] == ["untax", "run", "my run"]
    assert (
        "# Run:   cd 'my run' && axolotl train recipes/cluster-0.yaml"
        in Path("my run/recipes/cluster-0.yaml").read_text()
    )


def test_a_link_gives_a_readable_name() -> None:
    Path("a+b").mkdir()
    Path("base").symlink_to("a+b")
    recipe("dtm", "--base", "base", "--dataset", "sft.jsonl", "-o", "run")
    assert written("untax.yaml")["base"] == "../base"
    with pytest.raises(UntaxError, match=r"'\+' and '@'"):
        recipe("dtm", "--base", "a+b", "--dataset", "sft.jsonl", "-o", "other")


def test_an_empty_base_is_refused() -> None:
    with pytest.raises(UntaxError, match="empty"):
        recipe("dtm", "--base", "", "--dataset", "sft.jsonl", "-o", "run")


def test_the_path_of_an_embedder_is_seen_from_the_run_folder() -> None:
    Path("model").mkdir()
    for typed in ("llm:model", "llm:./model"):
        dtm("--strategy", "kmeans", "--embedder", typed, "--force")
        assert written("recipes/cluster-0.yaml")["disperse_embedder"] == "llm:../model"
