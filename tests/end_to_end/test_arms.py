"""Every kind of arm trained and merged for real, by the commands that `untax run` starts; then it looks at them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from untax.demo.demo import ALPACA_PROMPT
from untax.manifest import digest_file, digest_files, digest_model
from untax.recipes.preference import METHODS

from .arm_folder import ARMS, FEW, ROWS, ArmFolder, make_arm_folder, run_all, untax_command

TRAININGS = {
    "few": {"sft", "sft-sparse", "sft-ewc", "sft-replay", "dpo-sequential", "dpo-sequential-sparse", "kto"},
    "all": {
        *("sft", "sft-sparse", "sft-l2", "sft-ewc", "sft-replay", "soup-1", "dpo", "orpo", "kto", "simpo"),
        *("dpo-sequential", "dpo-sequential-sparse", "cluster-0", "cluster-1", "cluster-sparse-0", "cluster-sparse-1"),
    },
}
MODELS = {
    "few": {"vanilla", "ewc", "replay", "sft-sparse-alone", "sequential", "sequential-sparse", "paft-ties"},
    "all": {
        *("vanilla", "dtm", "l2", "ewc", "replay", "soup", "sft-sparse-alone", "sequential", "sequential-sparse"),
        *("dpo-alone", "orpo-alone", "kto-alone", "simpo-alone", "parallel-ties", "dtm-paft-ties"),
        *("paft-dpo-ties", "paft-orpo-ties", "paft-kto-ties", "paft-simpo-ties"),
    },
}


@pytest.fixture(scope="module", params=["few", pytest.param("all", marks=pytest.mark.slow)])
def which(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def arms(which: str, tmp_path_factory: pytest.TempPathFactory) -> ArmFolder:
    """A folder whose nodes have all run."""
    folder = make_arm_folder(tmp_path_factory.mktemp(which) / "run", FEW if which == "few" else ARMS)
    run_all(folder)
    return folder


def test_arms_share_their_trainings(arms: ArmFolder, which: str) -> None:
    assert {node.name for node in arms.nodes("train")} == set(arms.trained) == TRAININGS[which]
    assert {node.name for node in arms.nodes("merge")} == MODELS[which]


def test_untax_run_takes_everything_for_finished(arms: ArmFolder) -> None:
    assert untax_command(["run", str(arms.path), "--dry-run"]) == f"0 of {len(arms.plan.nodes)} nodes would run.\n"


def expected_rows(arms: ArmFolder, node: str) -> int:
    if node in METHODS or node.startswith("dpo-"):
        return ROWS["preference"] * (2 if node == "kto" else 1)
    if node.startswith("cluster"):
        return int(arms.manifest("disperse")["disperse"]["sizes"][int(node[-1])])
    return ROWS["sft"] + (ROWS["sft"] // 2 if node == "sft-replay" else 0)


def test_each_training_saw_its_rows_as_often_as_its_yaml_says(arms: ArmFolder) -> None:
    for node in arms.trained:
        keys, rows, made = arms.keys(node), expected_rows(arms, node), arms.manifest(node)["training"]
        steps = math.ceil(rows / keys["micro_batch_size"]) * keys["num_epochs"]
        kind = node.partition("-")[0]
        assert (made["kind"], made["rows"], made["steps"]) == (kind if kind in METHODS else "sft", rows, steps), node
        assert len(arms.trained[node].rows) == rows
        assert made["loss_first"] == arms.trained[node].logs[0]["loss"]


def test_penalties_are_the_arms(arms: ArmFolder) -> None:
    """Each with its lambda, at every step, and with an effect."""
    settings = {"sft-l2": ("l2", 10.0), "sft-ewc": ("ewc", 1000.0), "sft-sparse": ("l1", 0.01)}
    settings |= {f"cluster-sparse-{index}": ("l1", 0.01) for index in range(2)}
    for node in arms.trained:
        section = arms.manifest(node).get("penalty")
        if node not in settings:
            assert section is None
            continue
        name, strength = settings[node]
        assert section is not None
        assert {key: section[key] for key in ("l1", "l2", "ewc") if key in section} == {name: strength}
        assert section["steps_penalised"] == arms.manifest(node)["training"]["steps"]
        free = node.replace("-sparse", "") if node.startswith("cluster") else "sft"
        which_norm = 0 if name == "l1" else 1
        assert delta_norms(arms, node)[which_norm] < 0.9 * delta_norms(arms, free)[which_norm], node


def delta_norms(arms: ArmFolder, node: str) -> tuple[float, float]:
    """L1 and squared L2 norm of s*B@A over all layers, from the files."""
    from safetensors.torch import load_file

    folder = arms.path / "outputs" / node
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    deltas = [
        scale * tensors[name.replace("lora_A", "lora_B")].double() @ tensors[name].double()
        for name in tensors
        if "lora_A" in name
    ]
    return sum(float(delta.abs().sum()) for delta in deltas), sum(float((delta**2).sum()) for delta in deltas)


def test_inputs_are_what_other_nodes_made(arms: ArmFolder) -> None:
    outputs = arms.path / "outputs"
    assert arms.manifest("sft-ewc")["inputs"]["delta_ewc_fisher"] == digest_file(outputs / "fisher/fisher.safetensors")
    replayed = arms.manifest("sft-replay")["inputs"]
    text = outputs / "replay-text/replay.jsonl"
    assert replayed["datasets/outputs/replay-text/replay.jsonl"] == digest_file(text)
    assert len(text.read_text().splitlines()) == ROWS["sft"] // 2
    for node in arms.nodes("train"):
        start = {"dpo-sequential": "outputs/vanilla", "dpo-sequential-sparse": "outputs/sft-sparse-alone"}
        base = start.get(node.name, "base")
        assert arms.keys(node.name)["base_model"].removeprefix("./") == base
        assert arms.manifest(node.name)["inputs"]["base"] == digest_model(arms.path / base)


def test_a_merge_is_of_the_arms_own_trainings(arms: ArmFolder) -> None:
    """And no two merges are the same weights."""
    weights = set()
    for node in arms.nodes("merge"):
        made = arms.manifest(node.name)
        needed = {f"./outputs/{name}" for name in node.needs}
        base = "./outputs/" + node.needs[-1] if node.name.startswith("sequential") else "./base"
        models = {path: digest for path, digest in made["inputs"].items() if not path.startswith("tokenizer of ")}
        assert set(models) == needed | {base}
        for path, digest in models.items():
            folder = arms.path / path
            adapter = (folder / "adapter_config.json").exists()
            assert digest == (digest_files(folder, ["adapter_*"]) if adapter else digest_model(folder))
        weights.add(made["outputs"]["model.safetensors"])
    assert len(weights) == len(arms.nodes("merge"))


def test_every_method_is_trained_on_the_same_prompts_and_answers(arms: ArmFolder) -> None:
    lines = (arms.path / "data/preference.jsonl").read_text().splitlines()
    pairs = [json.loads(line) for line in lines]
    expected = sorted(
        (ALPACA_PROMPT.format(prompt=pair["prompt"]), f" {pair[answer]}", answer == "chosen")
        for pair in pairs
        for answer in ("chosen", "rejected")
    )
    trained = [node for node in arms.trained if node in METHODS or node.startswith("dpo-")]
    assert "kto" in trained
    for node in trained:
        rows = arms.trained[node].rows
        assert sorted(answer for row in rows for answer in answers(row)) == expected, node


def answers(row: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """(prompt, answer, whether it is wanted) of a trainer's row; some of TRL's trainers end the texts."""
    if "completion" in row:
        return [(row["prompt"], row["completion"].removesuffix("</s>"), row["label"])]
    return [(row["prompt"], row[key].removesuffix("</s>"), key == "chosen") for key in ("chosen", "rejected")]


@pytest.mark.parametrize(
    ("node", "start"), [("dpo-sequential", "vanilla"), ("dpo-sequential-sparse", "sft-sparse-alone")]
)
def test_the_second_stage_starts_from_the_first_ones_result(arms: ArmFolder, node: str, start: str) -> None:
    """At the first step policy and reference are one, and what they give the answers is what the SFT model gives."""
    first = arms.trained[node].logs[0]
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-6)
    of_start, of_base = (mean_logp(arms, arms.path / folder) for folder in (f"outputs/{start}", "base"))
    assert first["logps/chosen"] == pytest.approx(of_start, rel=1e-4)
    assert abs(of_start - of_base) > 0.01 * abs(of_base)


def mean_logp(arms: ArmFolder, model: Path) -> float:
    """The mean over pairs of the chosen answer's log-probability under a model, token by token in float64."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(model).double()
    tokenizer = AutoTokenizer.from_pretrained(arms.path / "base")
    found = []
    for line in (arms.path / "data/preference.jsonl").read_text().splitlines():
        pair = json.loads(line)
        prompt = ALPACA_PROMPT.format(prompt=pair["prompt"])
        ids = tokenizer(f"{prompt} {pair['chosen']}</s>")["input_ids"]
        start = len(tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            logps = loaded(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        found.append(float(logps[torch.arange(len(ids) - 1), torch.tensor(ids[1:])][start - 1 :].sum()))
    return sum(found) / len(found)


def test_what_makes_an_arms_sft_its_own_is_in_its_yaml(arms: ArmFolder) -> None:
    plain = arms.keys("sft")
    differing = {
        "sft-sparse": {"delta_l1", "plugins", "output_dir"},
        "sft-ewc": {"delta_ewc", "delta_ewc_fisher", "plugins", "output_dir"},
        "sft-replay": {"datasets", "output_dir"},
        "sft-l2": {"delta_l2", "plugins", "output_dir"},
        "soup-1": {"learning_rate", "output_dir"},
    }
    for node, keys in differing.items():
        if node in arms.trained:
            own = arms.keys(node)
            assert {key for key in own.keys() | plain.keys() if own.get(key) != plain.get(key)} == keys


@pytest.mark.slow
def test_untax_run_trains_kto_on_pairs_in_processes_of_its_own(tmp_path: Path, untax: Any) -> None:
    folder = make_arm_folder(tmp_path / "run", {"individual": {"of": ["kto"], "scales": [1.0, 0.5]}})
    untax("run", folder.path)
    made = folder.manifest("kto")["training"]
    assert (made["kind"], made["rows"], made["steps"]) == ("kto", 2 * ROWS["preference"], 4)
    assert untax_command(["run", str(folder.path), "--dry-run"]) == f"0 of {len(folder.plan.nodes)} nodes would run.\n"
