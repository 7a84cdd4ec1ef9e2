"""What each kind of arm expands to: its trainings, what they share, its models at each scale."""

from __future__ import annotations

import graphlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from untax.errors import UntaxError
from untax.recipes.arms import KINDS
from untax.recipes.graph import Node, Plan
from untax.recipes.merge_choice import MERGES
from untax.recipes.plan import plan
from untax.recipes.spec import RunSpec, check_spec, read_spec
from untax.recipes.write import spec_text, write_run_folder

LORA = {"adapter": "lora", "lora_r": 16, "lora_alpha": 16}
CONTENT: dict[str, Any] = {
    "base": "b",
    "device": "cpu",
    "sft": [{"path": "s.jsonl", "type": "alpaca"}],
    "preference": [{"path": "p.jsonl", "type": "chat_template.argilla_chat"}],
    "replay": [{"path": "t.txt", "separator": "---"}, {"path": "u.txt", "separator": "---"}],
    "training": {
        "sft": {**LORA, "learning_rate": 0.001, "sequence_len": 64, "delta_schedule": "linear_warmup"},
        "preference": {**LORA, "rl": "dpo", "rl_beta": 0.01, "learning_rate": 0.0001, "micro_batch_size": 2},
        "orpo": {"learning_rate": 0.0002},
    },
}
EVERY: dict[str, Any] = {
    "vanilla": {},
    "dtm": {"clusters": 2},
    "l2": {},
    "ewc": {},
    "replay": {},
    "soup": {"runs": [{}, {"learning_rate": 0.0005}]},
    "individual": {"of": ["sft", "sft-sparse", "dpo", "orpo", "kto", "simpo"]},
    "sequential": {"sft": ["dense", "sparse"], "preference": ["dpo", "orpo"]},
    "parallel": {},
    "paft": {"preference": ["dpo", "orpo"]},
    "dtm-paft": {"clusters": 2},
}


def spec_of(arms: dict[str, Any], **more: Any) -> RunSpec:
    return check_spec({**CONTENT, "arms": arms, **more}, where="test")


def nodes(expanded: Plan, kind: str) -> dict[str, Node]:
    return {node.name: node for node in expanded.nodes if node.kind == kind}


def keys(expanded: Plan, name: str) -> dict[str, Any]:
    return yaml.safe_load(expanded.files[f"recipes/{name}.yaml"])


def merge(expanded: Plan, name: str) -> dict[str, Any]:
    return yaml.safe_load(expanded.files[f"mergekit_configs/{name}.yaml"])


@pytest.fixture(scope="module")
def every() -> Plan:
    return plan(spec_of(EVERY))


def test_every_kind_is_tried_here():
    assert list(EVERY) == list(KINDS)


def test_trainings_are_shared(every: Plan):
    """One vanilla SFT serves vanilla, soup, individual, sequential and parallel; one DPO four arms."""
    assert list(nodes(every, "train")) == [
        *("sft", "cluster-0", "cluster-1", "sft-l2", "sft-ewc", "sft-replay", "soup-1", "sft-sparse"),
        *("dpo", "orpo", "kto", "simpo"),
        *("dpo-sequential", "orpo-sequential", "dpo-sequential-sparse", "orpo-sequential-sparse"),
        *("cluster-sparse-0", "cluster-sparse-1"),
    ]
    assert list(nodes(every, "disperse")) == ["disperse"]


def test_every_need_is_a_node_and_comes_first(every: Plan):
    graph = {node.name: node.needs for node in every.nodes}
    assert set(graphlib.TopologicalSorter(graph).static_order()) == set(graph)
    place = {node.name: index for index, node in enumerate(every.nodes)}
    assert all(place[need] < place[name] for name, needs in graph.items() for need in needs)


def test_no_two_nodes_write_one_folder(every: Plan):
    outputs = [output for node in every.nodes for output in node.outputs]
    assert len(outputs) == len(set(outputs))


def test_penalties(every: Plan):
    """Each penalised SFT differs from plain SFT in the penalty alone."""
    plain = keys(every, "sft")
    found = {}
    for name in ("sft-l2", "sft-ewc", "sft-sparse"):
        one = keys(every, name)
        found[name] = {key: one.pop(key) for key in list(one) if key.startswith("delta_")}
        assert one.pop("plugins") == ["untax.DeltaPenaltyPlugin"]
        assert one.pop("output_dir") == f"outputs/{name}"
        assert one == {key: value for key, value in plain.items() if key not in ("plugins", "output_dir")}
    assert found == {
        "sft-l2": {"delta_l2": 0.01, "delta_schedule": "linear_warmup"},
        "sft-ewc": {
            "delta_ewc": 0.01,
            "delta_ewc_fisher": "outputs/fisher/fisher.safetensors",
            "delta_schedule": "linear_warmup",
        },
        "sft-sparse": {"delta_l1": 0.0001, "delta_schedule": "linear_warmup"},
    }
    assert not any(key.startswith("delta_") for key in plain)


def test_ewc_estimates_the_fisher_information_on_replay_text(every: Plan):
    text, fisher = nodes(every, "replay")["fisher-text"], nodes(every, "fisher")["fisher"]
    assert text.command == (
        *("untax", "replay", "--texts", "t.txt", "--texts", "u.txt", "--separator", "---", "--base", "b"),
        *("--rows", "256", "--sequence-len", "64", "--seed", "42", "-o", "outputs/fisher-text"),
    )
    assert fisher.command[:5] == ("untax", "fisher", "b", "--data", "outputs/fisher-text/replay.jsonl")
    assert (fisher.needs, nodes(every, "train")["sft-ewc"].needs) == (("fisher-text",), ("fisher",))
    given = plan(spec_of({"ewc": {"fisher": "f.safetensors"}}, replay=None))
    assert keys(given, "sft-ewc")["delta_ewc_fisher"] == "f.safetensors"
    assert not nodes(given, "fisher")


def test_replay_mixes_text_into_the_instruction_data(every: Plan):
    node = nodes(every, "replay")["replay-text"]
    assert node.command[-8:] == (
        *("--like", "recipes/sft-replay.yaml", "--ratio", "1", "--seed", "42", "-o", "outputs/replay-text"),
    )
    written = keys(every, "sft-replay")
    text = {"path": "outputs/replay-text/replay.jsonl", "type": "completion", "field": "text"}
    assert written["datasets"] == [*CONTENT["sft"], text]
    assert {**written, "datasets": 0, "output_dir": 0} == {**keys(every, "sft"), "datasets": 0, "output_dir": 0}


def test_a_soup_differs_in_its_runs_keys_only(every: Plan):
    sft, run = keys(every, "sft"), keys(every, "soup-1")
    assert {key for key in sft if sft[key] != run[key]} == {"learning_rate", "output_dir"}
    assert [model["model"] for model in merge(every, "soup")["models"]] == [
        "b",
        "b+./outputs/sft",
        "b+./outputs/soup-1",
    ]


def test_the_second_stage_starts_from_the_firsts_model(every: Plan):
    starts = {"dpo-sequential": "vanilla", "orpo-sequential-sparse": "sft-sparse-alone"}
    for name, start in starts.items():
        assert keys(every, name)["base_model"] == f"outputs/{start}"
        assert nodes(every, "train")[name].needs == (start,)
    assert merge(every, "sequential-sparse-orpo")["base_model"] == "./outputs/sft-sparse-alone"
    first = merge(every, "sft-sparse-alone")
    assert [model["model"] for model in first["models"]] == ["b+./outputs/sft-sparse"]


def test_methods_have_keys_of_their_own(every: Plan):
    """The recipe's beta is DPO's; ORPO has a section of its own over what both share."""
    dpo, orpo = keys(every, "dpo"), keys(every, "orpo")
    assert (dpo["rl"], dpo["rl_beta"], dpo["learning_rate"]) == ("dpo", 0.01, 0.0001)
    assert (orpo["rl"], orpo["learning_rate"]) == ("orpo", 0.0002)
    assert (orpo.get("rl_beta"), orpo["orpo_alpha"]) == (None, 0.1)
    assert {keys(every, name)["rl"] for name in ("kto", "simpo")} == {"kto", "simpo"}


def test_dtm_paft_merges_sparse_clusters_with_the_preference_model(every: Plan):
    names = [model["model"] for model in merge(every, "dtm-paft-ties")["models"]]
    assert names == ["b+./outputs/cluster-sparse-0", "b+./outputs/cluster-sparse-1", "b+./outputs/dpo"]
    one = keys(every, "cluster-sparse-1")
    assert (one["delta_l1"], one["disperse_cluster"], one["disperse_clusters"]) == (0.0001, 1, 2)
    assert one["plugins"] == ["untax.DispersePlugin", "untax.DeltaPenaltyPlugin"]
    assert one["disperse_assignment"] == keys(every, "cluster-1")["disperse_assignment"]


def test_rows_of_the_table_stand_in_the_recipes_order():
    arms = dict(reversed(EVERY.items()))
    first = [model.arm for model in plan(spec_of(arms, suite="demo")).models]
    assert first[:2] == ["base", "dtm-paft"]
    assert first[-1] == "vanilla"


def test_a_model_in_two_rows_is_scored_once():
    expanded = plan(spec_of({"vanilla": {}, "individual": {"of": ["sft", "dpo"]}}, suite="demo"))
    assert [(model.arm, model.model) for model in expanded.models[1:]] == [
        ("vanilla", "outputs/vanilla"),
        ("sft-alone", "outputs/vanilla"),
        ("dpo-alone", "outputs/dpo-alone"),
    ]
    scored = [node.models for node in nodes(expanded, "score").values()]
    assert scored == [("b",), ("outputs/vanilla",), ("outputs/dpo-alone",)]


@pytest.mark.parametrize("kind", EVERY)
def test_every_arm_can_be_scaled(kind: str):
    expanded = plan(spec_of({kind: {**EVERY[kind], "scales": [1, 0.5]}}))
    by_scale = {scale: {model.arm for model in expanded.models if model.scale == scale} for scale in (1, 0.5)}
    assert by_scale[1] == by_scale[0.5] != set()
    models = [model.model for model in expanded.models]
    assert len(models) == len(set(models))
    made = {output for node in nodes(expanded, "merge").values() for output in node.outputs}
    assert set(models[1:]) <= made


@pytest.mark.parametrize("method", MERGES)
def test_every_method_scales_the_delta_by_what_is_asked(method: str):
    """Where the method has no factor, the merged model is moved towards the base."""
    arm = {"arm": "soup", "runs": [{"seed": 1}, {"seed": 2}], "merge": [method], "statistics": "s.jsonl"}
    expanded = plan(spec_of({"mine": {**arm, "scales": [0.5]}}))
    name = expanded.models[1].model.removeprefix("outputs/")
    scaled = merge(expanded, name)
    if method in ("slerp", "nuslerp", "regmean"):
        assert scaled["models"] == [{"model": f"./outputs/{name.removesuffix('-0.5')}", "parameters": {"weight": 1.0}}]
        assert (scaled["base_model"], scaled["parameters"]["lambda"]) == ("b", 0.5)
    elif scaled["merge_method"] == "linear":
        assert [model["parameters"]["weight"] for model in scaled["models"]] == [0.5, 0.25, 0.25]
    else:
        assert scaled["parameters"]["lambda"] == 0.5


def test_settings_of_a_merge():
    choices = [
        {"method": "ties", "name": "ties-sharp", "density": 0.2},
        {"method": "linear", "weights": [3, 1]},
        {"method": "slerp", "t": 0.25},
    ]
    expanded = plan(spec_of({"paft": {"merge": ["ties", *choices]}}))
    assert [model.model for model in expanded.models[1:]] == [
        *("outputs/ties", "outputs/ties-sharp", "outputs/linear", "outputs/slerp"),
    ]
    assert merge(expanded, "ties-sharp")["models"][0]["parameters"]["density"] == 0.2
    assert [model["parameters"]["weight"] for model in merge(expanded, "linear")["models"]] == [0, 0.75, 0.25]
    assert merge(expanded, "slerp")["parameters"] == {"t": 0.25}


def test_weights_of_a_fisher_merge():
    expanded = plan(spec_of(mean_of("fisher", 1, 3)))
    assert [model["parameters"]["weight"] for model in merge(expanded, "fisher")["models"]] == [1, 3]


def test_rows_in_another_order_are_prepared_apart():
    """Axolotl shuffles before it caches, and its cache is not keyed by the seed: who came first would decide."""
    runs = [{"seed": 42}, {"seed": 7}, {"learning_rate": 1.0}, {"seed": 7, "learning_rate": 1.0}]
    expanded = plan(
        spec_of(
            {"soup": {"runs": runs}, "paft": {}},
            nodes={"dpo": {"axolotl": {"excess_length_strategy": "truncate"}}},
        )
    )
    found = {name: keys(expanded, name)["dataset_prepared_path"] for name in nodes(expanded, "train")}
    assert found.pop("soup-1") == found.pop("soup-3") != found.pop("dpo")
    assert found == dict.fromkeys(["soup-0", "soup-2", "sft-sparse"], "outputs/prepared")


def test_statistics_are_made_for_each_adapter():
    arms = {"dtm": {"clusters": 2, "merge": ["fisher", "regmean"], "statistics": "s.jsonl"}}
    expanded = plan(spec_of(arms))
    commands = [node.command[:5] for node in nodes(expanded, "fisher").values()]
    assert commands == [
        ("untax", command, f"b+./outputs/cluster-{index}", "--data", "s.jsonl")
        for command in ("fisher", "gram")
        for index in range(2)
    ]
    files = [model["parameters"]["fisher"] for model in merge(expanded, "fisher")["models"]]
    assert files == [f"./outputs/fisher-cluster-{index}/fisher.safetensors" for index in range(2)]
    assert set(nodes(expanded, "merge")["fisher"].needs) >= {"fisher-cluster-0", "fisher-cluster-1", "cluster-0"}
    assert "untax merge mergekit_configs/fisher.yaml" in expanded.files["mergekit_configs/fisher.yaml"]


def test_several_arms_of_one_kind():
    arms = {"dtm-k3": {"arm": "dtm", "clusters": 3}, "dtm": {"clusters": 2}, "same": {"arm": "dtm", "clusters": 2}}
    expanded = plan(spec_of(arms))
    assert [model.model for model in expanded.models[1:]] == ["outputs/dtm-k3", "outputs/dtm", "outputs/dtm"]
    assert list(nodes(expanded, "train")) == [
        *("cluster-0", "cluster-1", "cluster-0-dtm-k3", "cluster-1-dtm-k3", "cluster-2-dtm-k3"),
    ]
    assert keys(expanded, "cluster-2-dtm-k3")["disperse_assignment"] == "outputs/disperse-dtm-k3/assignment.parquet"
    assert nodes(expanded, "disperse")["disperse-dtm-k3"].config == "recipes/cluster-0-dtm-k3.yaml"


def test_two_lambdas_are_two_trainings():
    expanded = plan(spec_of({"paft": {}, "paft-3": {"arm": "paft", "delta_l1": 0.001}}))
    lambdas = {name: keys(expanded, name).get("delta_l1") for name in nodes(expanded, "train")}
    assert lambdas == {"sft-sparse": 0.0001, "dpo": None, "sft-sparse-paft-3": 0.001}


def test_adding_an_arm_changes_no_training(every: Plan):
    fewer = plan(spec_of({name: arm for name, arm in EVERY.items() if name not in ("soup", "dtm-paft", "ewc")}))
    for name in nodes(fewer, "train"):
        assert fewer.files[f"recipes/{name}.yaml"] == every.files[f"recipes/{name}.yaml"]


@settings(max_examples=25)
@given(st.lists(st.sampled_from(list(EVERY)), min_size=1, unique=True))
def test_any_order_of_arms_makes_the_same_trainings(names: list[str]):
    expanded = plan(spec_of({name: EVERY[name] for name in names}))
    again = plan(spec_of({name: EVERY[name] for name in sorted(names)}))
    assert expanded.files == again.files
    assert {node.name: node.command for node in expanded.nodes} == {node.name: node.command for node in again.nodes}


def test_keys_for_all_trainings_and_for_one():
    more = {
        "axolotl": {"flash_attention": True, "plugins": ["a.B"], "deepspeed": "zero.json"},
        "nodes": {"cluster-1": {"axolotl": {"learning_rate": 0.5, "plugins": ["c.D"]}, "gpus": 4}},
        "launcher": "torchrun",
        "launcher_args": ["--nproc_per_node=2"],
        "gpus": 2,
    }
    expanded = plan(spec_of({"dtm": {"clusters": 2}, "paft": {}}, **more))
    for name, node in nodes(expanded, "train").items():
        assert keys(expanded, name)["flash_attention"] is True
        assert keys(expanded, name)["deepspeed"] == "zero.json"
        assert node.command == (
            *("axolotl", "train", f"recipes/{name}.yaml", "--launcher", "torchrun", "--", "--nproc_per_node=2"),
        )
        assert node.gpus == (4 if name == "cluster-1" else 2)
    assert keys(expanded, "cluster-0")["learning_rate"] == 0.001
    assert keys(expanded, "cluster-1")["learning_rate"] == 0.5
    assert keys(expanded, "cluster-0")["plugins"] == ["untax.DispersePlugin", "a.B"]
    assert keys(expanded, "cluster-1")["plugins"] == ["untax.DispersePlugin", "a.B", "c.D"]
    assert keys(expanded, "dpo")["plugins"] == ["untax.ManifestPlugin", "a.B"]


def test_pairs_by_method():
    pairs = {"dpo": [{"path": "d.jsonl"}], "kto": [{"path": "k.jsonl"}]}
    expanded = plan(spec_of({"paft": {"preference": ["dpo", "kto"]}}, preference=pairs))
    assert {name: keys(expanded, name)["datasets"] for name in ("dpo", "kto")} == pairs


def mean_of(method: str, *weights: float) -> dict[str, Any]:
    merge = {"method": method, "weights": list(weights)}
    return {"dtm": {"clusters": len(weights), "merge": [merge], "statistics": "s.jsonl"}}


@pytest.mark.parametrize(
    ("arms", "more", "said"),
    [
        ({"dtmm": {}}, {}, "unknown key arms.dtmm. Did you mean 'dtm'"),
        ({"x": {"arm": "dtmm"}}, {}, "arms.x.arm: unknown name 'dtmm'. Did you mean 'dtm'"),
        ({"a/b": {"arm": "dtm"}}, {}, "'a/b' is no name"),
        ({"soup": {}}, {}, r"arms.soup.runs: field required"),
        ({"soup": {"runs": [{}, {}]}}, {}, "run 1 is the same as run 0"),
        ({"soup": {"runs": [{}, {"output_dir": "x"}]}}, {}, "run 1: output_dir belongs to the plan"),
        ({"paft": {"preference": ["dppo"]}}, {}, "arms.paft.preference: unknown method 'dppo'. Did you mean 'dpo'"),
        ({"individual": {"of": ["sfft"]}}, {}, "unknown training 'sfft'. Did you mean 'sft'"),
        ({"individual": {}}, {}, "arms.individual.of: field required"),
        ({"replay": {}}, {"replay": None}, "replay is missing: replay cannot do without pretraining text\n"),
        ({"ewc": {}}, {"replay": None}, r"ewc cannot do without pretraining text \(or name its Fisher information"),
        ({"dtm": {"merge": ["fisher"]}}, {}, "merge.0: fisher needs statistics"),
        ({"dtm": {"merge": ["slerp"]}}, {}, "slerp merges two models, and this arm has 4"),
        ({"paft": {"merge": [{"method": "ties", "weights": [1]}]}}, {}, "weights has 1 numbers for 2 adapters"),
        ({"paft": {"merge": [{"method": "linear", "density": 0.5}]}}, {}, "density: linear has none"),
        ({"paft": {"merge": [{"method": "ties", "densty": 0.5}]}}, {}, "merge.0.densty. Did you mean 'density'"),
        ({"paft": {"merge": ["ties", {"method": "ties", "density": 0.2}]}}, {}, "ties is named twice"),
        (
            {"dtm": {"merge": ["average", "ties"]}, "dtm-ties": {"arm": "dtm", "clusters": 2}},
            {},
            "arms.dtm and arms.dtm-ties both write outputs/dtm-ties",
        ),
        ({"vanilla": {}}, {"nodes": {"sfft": {}}}, "unknown training nodes.sfft. Did you mean 'sft'"),
        ({"vanilla": {}}, {"nodes": {"sft": {"axolotl": {"seed": 1}}}}, "nodes.sft.axolotl: seed belongs to the plan"),
        ({"vanilla": {}}, {"axolotl": {"output_dir": "x"}}, "axolotl: output_dir belongs to the plan"),
        ({"paft": {}}, {"preference": {"kto": [{"path": "k.jsonl"}]}}, "preference.dpo is missing: paft"),
        ({"paft": {}}, {"preference": {"dppo": [{"path": "k.jsonl"}]}}, "unknown method 'dppo'"),
        ({"replay": {}}, {"replay": [{"path": "t.txt", "colum": "x"}]}, "replay entry 0: unknown key colum"),
        ({"replay": {}}, {"replay": [{"path": "t", "split": "a"}, {"path": "u"}]}, "must agree on split"),
        ({"vanilla": {}}, {"nodes": {"sft": {"learning_rate": 1}}}, "unknown key nodes.sft.learning_rate. Known: axo"),
        ({"vanilla": {}}, {"nodes": {"sft": {"axolotl": {"adapter": None}}}}, "nodes.sft.axolotl.adapter: name lora"),
        ({"soup": {"runs": [{}, {"adapter": "ia3"}]}}, {}, "arms.soup.runs.1.adapter: name lora or qlora .it is 'ia3'"),
        ({"vanilla": {}}, {"nodes": {"sft": {"axolotl": {"rl": "dpo"}}}}, "nodes.sft.axolotl: rl belongs to the plan"),
        ({"vanilla": {}}, {"axolotl": {"rl": "dpo"}}, "axolotl: rl belongs to the plan"),
        ({"soup": {"runs": [{}, {"rl": "dpo"}]}}, {}, "run 1: rl belongs to the plan"),
        ({"dtm": {"clusters": 10**6}}, {}, "arms.dtm.clusters"),
        ({"base": {"arm": "vanilla"}}, {}, "'base' is taken"),
        ({"dtm": {"merge": [{"method": "ties", "name": "prepared"}]}}, {}, "'prepared' is taken"),
        (
            {"l2": {}, "score-l2": {"arm": "l2", "delta_l2": 0.5}},
            {"suite": "demo"},
            "arms.l2 is scored by a node score-l2",
        ),
        (mean_of("average", 0, 0), {}, "average divides by their sum"),
        (mean_of("linear", 1, -1), {}, "linear divides by their sum"),
        (mean_of("fisher", -1, 2), {}, "fisher's are not below 0"),
        (mean_of("regmean", 1, 2), {}, "weights: regmean has none"),
        (mean_of("ties_global", 1, 2), {}, "weights: ties_global has none"),
        (mean_of("ties", 1, float("inf")), {}, "weights: they are finite"),
        (
            {"vanilla": {}},
            {"device": "cuda", "gpus": 2, "launcher": "python"},
            "python starts one process, and gpus is 2",
        ),
        ({"vanilla": {}}, {"device": "cuda", "gpus": 2, "launcher": "torchrun"}, "give --nproc_per_node=2"),
        ({"vanilla": {}}, {"device": "cuda", "launcher_args": ["--num_processes=8"]}, "8 processes are started, and"),
        (
            {"vanilla": {}},
            {"device": "cuda", "gpus": 4, "nodes": {"sft": {"gpus": 2}}, "launcher_args": ["--num_processes", "4"]},
            "4 processes are started, and gpus is 2",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(arms: dict[str, Any], more: dict[str, Any], said: str):
    with pytest.raises(UntaxError, match=said):
        spec_of(arms, **more)


@pytest.mark.parametrize(
    ("launcher", "args"),
    [
        (None, []),
        (None, ["--num_processes=4", "--main_process_port=0"]),
        ("torchrun", ["--nproc-per-node", "gpu"]),
        ("accelerate", ["--num_machines=2", "--num_processes=8"]),
    ],
)
def test_launchers_that_fit(launcher: str | None, args: list[str]):
    expanded = plan(spec_of({"vanilla": {}}, device="cuda", gpus=4, launcher=launcher, launcher_args=args))
    command = nodes(expanded, "train")["sft"].command
    assert command[len(command) - len(args) :] == tuple(args)


def test_everything_wrong_is_told_at_once():
    """Typos, arms without data, an unknown method and an adapter that is none: in one error."""
    arms = {"paft": {"merge": ["tie"]}, "dtm": {"clusters": 1}, "replay": {}, "nosuch": {}}
    with pytest.raises(UntaxError) as caught:
        check_spec(
            {**CONTENT, "arms": arms, "replay": None, "preference": None, "bse": "x", "training": {"sft": {}}},
            where="test",
        )
    for part in (
        "unknown key bse. Did you mean 'base'",
        "unknown key arms.nosuch",
        "arms.paft.merge.0.method: unknown name 'tie'",
        "arms.dtm.clusters",
        "replay is missing: replay",
        "preference is missing: paft",
        "training.sft.adapter",
    ):
        assert part in str(caught.value), part


def test_the_whole_recipe_survives_being_written(tmp_path: Path):
    choices = ["ties", {"method": "ties", "name": "sharp", "density": 0.2}]
    arms = {**EVERY, "again": {"arm": "paft", "merge": choices, "delta_sparsity": 0.9}}
    spec = spec_of(arms, nodes={"sft": {"gpus": 2}}, axolotl={"flash_attention": True}, launcher="accelerate")
    (tmp_path / "untax.yaml").write_text(spec_text(spec))
    assert plan(read_spec(tmp_path / "untax.yaml")) == plan(spec)
    assert spec_text(read_spec(tmp_path / "untax.yaml")) == spec_text(spec)


def test_an_idle_setting_is_not_written():
    text = spec_text(spec_of({"sequential": {}, "individual": {"of": ["dpo"]}}))
    assert "delta_l1" not in text


def test_axolotl_and_mergekit_accept_every_arm(tmp_path: Path, axolotl_validated: Any, monkeypatch: pytest.MonkeyPatch):
    from untax.merge import mergekit_yaml
    from untax.merge.parameters import check_parameters

    mergekit_yaml.import_quietly()
    arms = {name: {**arm, "scales": [1, 0.5]} for name, arm in EVERY.items()}
    arms["dtm"] = {**arms["dtm"], "merge": [name for name in MERGES if name != "linear"], "statistics": "s.jsonl"}
    monkeypatch.chdir(tmp_path)
    Path("outputs/fisher").mkdir(parents=True)
    save_file({"w": np.ones(1, np.float32)}, "outputs/fisher/fisher.safetensors")
    for name in ("s.jsonl", "p.jsonl", "outputs/replay-text/replay.jsonl"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("{}\n")
    write_run_folder(spec_of(arms), tmp_path)
    for path in sorted((tmp_path / "recipes").glob("*.yaml")):
        written, validated = yaml.safe_load(path.read_text()), axolotl_validated(path)
        assert [key for key in written if validated.get(key) is None and written[key] is not None] == [], path
    configs = sorted((tmp_path / "mergekit_configs").glob("*.yaml"))
    assert len(configs) > 50
    for path in configs:
        config = mergekit_yaml.read_config(yaml.safe_load(path.read_text()), where=path)
        assert check_parameters(config, where=path) == []
