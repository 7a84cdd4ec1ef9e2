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
from untax.recipes.arms import KINDS
from untax.recipes.papers import values
from untax.recipes.preference import METHODS
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


DATA = ("--base", "org/base", "--dataset", "sft.jsonl", "--type", "alpaca")
PAIRS = (
    "--preference",
    "org/pairs",
    "--replay",
    "org/text",
    "--replay-split",
    "train[:1%]",
    "--replay-column",
    "content",
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_arm_is_one_command(kind: str) -> None:
    found = recipe(kind, *DATA, *PAIRS, "--device", "cpu", "--scale", "1", "--scale", "0.5", "-o", "run")
    assert found.exit_code == 0
    spec = written("untax.yaml")
    assert list(spec["arms"]) == [kind]
    assert spec["sft"] == [{"path": "../sft.jsonl", "type": "alpaca"}]
    assert spec["arms"][kind]["scales"] == [1, 0.5]
    assert spec["replay"] == [{"path": "org/text", "split": "train[:1%]", "field": "content"}]
    assert len(list(Path("run/recipes").glob("*.yaml"))) == sum(
        "axolotl train" in line for line in found.stdout.split("\n")
    )


def test_arms_of_one_paper_in_one_command() -> None:
    company = [part for kind in ("vanilla", "l2", "ewc", "replay", "soup") for part in ("--with", kind)]
    dtm(*PAIRS, *company, "-k", "2", "--scale", "0.5")
    spec = written("untax.yaml")
    assert list(spec["arms"]) == ["vanilla", "dtm", "l2", "ewc", "replay", "soup"]
    assert {tuple(arm["scales"]) for arm in spec["arms"].values()} == {(0.5,)}
    assert spec["arms"]["soup"]["runs"][1] == {"learning_rate": 0.00015}


def test_methods_of_preference() -> None:
    paft("--method", "orpo", "--method", "kto", "--with", "sequential", "--pad-token", "</s>")
    spec = written("untax.yaml")
    assert spec["arms"]["paft"]["preference"] == spec["arms"]["sequential"]["preference"] == ["orpo", "kto"]
    for method in ("orpo", "kto"):
        training = written(f"recipes/{method}.yaml")
        assert (training["rl"], training["lora_r"]) == (method, 128)
        assert training["special_tokens"] == {"pad_token": "</s>"}
    assert written("recipes/orpo.yaml")["orpo_alpha"] == 0.1
    assert "rl_beta" not in written("recipes/orpo.yaml")


def test_a_name_without_an_owner_is_said_to_be_a_hub_id() -> None:
    said = recipe("dtm", "--base", "bse", "--dataset", "sft.jsonl", "-o", "run").stdout
    assert "bse: no such file or folder here, so it is taken as a hub id" in said
    assert "hub id" not in dtm(out="other").stdout


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["paft", "parallel", "sequential", "dtm-paft", "individual"])
def test_every_method_alone_is_one_command(kind: str, method: str) -> None:
    """With its own settings, and without those of DPO with which it would not start."""
    option = "--of" if kind == "individual" else "--method"
    recipe(kind, *DATA, *PAIRS, option, method, "-o", "run")
    name = f"{method}-sequential" if kind == "sequential" else method
    training = written(f"recipes/{name}.yaml")
    assert training["rl"] == method
    assert {key: training[key] for key in METHODS[method].defaults} == values(METHODS[method].defaults)
    assert not set(METHODS[method].refused) & set(training)


def test_a_type_of_fields_and_formats() -> None:
    fields = "{field_prompt: question, field_chosen: good, field_rejected: bad, prompt_format: 'Q: {prompt}'}"
    recipe("paft", *DATA, *PAIRS, "--preference-type", fields, "-o", "run")
    assert written("untax.yaml")["preference"][0]["type"] == {
        **{"field_prompt": "question", "field_chosen": "good", "field_rejected": "bad"},
        "prompt_format": "Q: {prompt}",
    }
    with pytest.raises(UntaxError, match="--preference-type"):
        recipe("paft", *DATA, *PAIRS, "--preference-type", "{field_prompt: ", "-o", "other")


def test_an_arm_without_its_data_is_refused() -> None:
    for kind, missing in {
        "paft": "preference is missing",
        "replay": "replay is missing",
        "individual": "sft is",
    }.items():
        with pytest.raises(UntaxError, match=missing):
            recipe(kind, "--base", "org/base", "--replay" if kind == "paft" else "--preference", "org/x", "-o", "run")


def test_everything_wrong_is_told_at_once() -> None:
    wrong = ("--merge", "tie", "--method", "dppo", "--scale", "3", "--suite", "dmo", "--with", "ewc")
    with pytest.raises(UntaxError) as caught:
        recipe("paft", "--base", "no/such/base", "--sft", "gone.jsonl", "--preference", "gone.csv", "-o", "run", *wrong)
    for part in (
        *("--base no/such/base", "--dataset gone.jsonl", "--preference gone.csv", "Did you mean 'ties'"),
        *("Did you mean 'dpo'", "arms.paft.scales.0", "Did you mean 'demo'", "replay is missing: ewc"),
    ):
        assert part in str(caught.value), part
    assert not Path("run").exists()


def test_a_missing_file_of_an_untax_yaml_is_told() -> None:
    dtm()
    Path("sft.jsonl").unlink()
    with pytest.raises(UntaxError, match=r"there is no \.\./sft\.jsonl"):
        recipe("--from", "run")


def test_dry_run_and_diff_write_nothing() -> None:
    said = dtm("--dry-run").stdout
    assert "would write run/recipes/cluster-0.yaml" in said
    assert "axolotl train recipes/cluster-3.yaml" in said
    assert not Path("run").exists()
    dtm()
    spec = Path("run/untax.yaml")
    spec.write_text(spec.read_text().replace("clusters: 4", "clusters: 3"))
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    said = recipe("--from", "run", "--dry-run").stdout
    assert "would replace run/recipes/cluster-0.yaml" in said
    assert "would remove run/recipes/cluster-3.yaml" in said
    diff = recipe("--from", "run", "--diff").stdout
    assert "-disperse_clusters: 4\n+disperse_clusters: 3\n" in diff
    assert "--- recipes/cluster-3.yaml\n+++ /dev/null\n" in diff
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    recipe("--from", "run")
    assert recipe("--from", "run", "--diff").stdout == "run: nothing would change.\n"


def test_an_edited_yaml_is_kept_and_named() -> None:
    dtm("--with-vanilla")
    edited = Path("run/recipes/sft.yaml")
    edited.write_text(edited.read_text().replace("lora_r: 16", "lora_r: 8"))
    spec = Path("run/untax.yaml")
    spec.write_text(spec.read_text().replace("learning_rate: 0.0003", "learning_rate: 0.0001"))
    diff = recipe("--from", "run", "--diff").stdout
    assert "+++ recipes/sft.yaml (edited by hand: kept)" in diff
    for _ in range(2):
        assert "run/recipes/sft.yaml: edited by hand, kept" in recipe("--from", "run").stdout
        assert written("recipes/sft.yaml")["lora_r"] == 8
    assert written("recipes/sft.yaml")["learning_rate"] == 0.0003
    assert written("recipes/cluster-0.yaml")["learning_rate"] == 0.0001
    recipe("--from", "run", "--force")
    assert (written("recipes/sft.yaml")["lora_r"], written("recipes/sft.yaml")["learning_rate"]) == (16, 0.0001)


def test_a_preset_by_its_name() -> None:
    assert "dtm-llama2-7b-tulu2: meta-llama/Llama-2-7b-hf" in recipe("--presets").stdout
    recipe("--from", "dtm-llama2-7b-tulu2", "-o", "run")
    assert written("untax.yaml")["base"] == "meta-llama/Llama-2-7b-hf"
    assert written("recipes/cluster-0.yaml")["output_dir"] == "outputs/cluster-0"
    with pytest.raises(UntaxError, match="A preset needs a folder"):
        recipe("--from", "dtm-llama2-7b-tulu2")
    with pytest.raises(UntaxError, match="dtm-llama2-7b-tulu2"):
        recipe("--from", "dtm-llama2-7b-tulu", "-o", "other")
