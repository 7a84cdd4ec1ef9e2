"""The graph and the YAMLs that a spec expands to."""

from __future__ import annotations

import graphlib
import shlex
from typing import Any

import pytest
import yaml

from untax.demo.demo import demo_spec
from untax.recipes.axolotl_yaml import dump
from untax.recipes.graph import Plan
from untax.recipes.plan import plan
from untax.recipes.spec import check_spec

LORA = {"adapter": "lora", "lora_r": 16, "lora_alpha": 16}


def spec(arms: dict[str, Any], **more: Any):
    content = {"base": "b", "device": "cpu", "sft": [{"path": "s.jsonl", "type": "alpaca"}], "arms": arms, **more}
    content.setdefault("preference", [{"path": "p.jsonl"}])
    training = content.setdefault("training", {})
    content["training"] = {
        "sft": {**LORA, **training.get("sft", {})},
        "preference": {**LORA, "rl": "dpo", **training.get("preference", {})},
    }
    return check_spec(content, where="test")


def names(expanded: Plan) -> list[str]:
    return [node.name for node in expanded.nodes]


def keys(expanded: Plan, name: str) -> dict[str, Any]:
    return yaml.safe_load(expanded.files[name])


def test_every_need_is_a_node_and_there_is_no_cycle():
    expanded = plan(demo_spec())
    graph = {node.name: node.needs for node in expanded.nodes}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert sorted(order) == sorted(graph)


def test_arms_share_what_they_have_in_common():
    expanded = plan(demo_spec())
    assert len(names(expanded)) == len(set(names(expanded)))
    trainings = [node.name for node in expanded.nodes if node.kind == "train"]
    assert sorted(trainings) == sorted(
        ["sft", "cluster-0", "cluster-1", "cluster-2", "cluster-3", "sft-sparse", "dpo", "dpo-sequential"]
    )


def test_every_node_has_its_yaml_and_writes_where_the_graph_looks():
    expanded = plan(demo_spec())
    for node in expanded.nodes:
        if node.kind == "train":
            assert keys(expanded, str(node.config))["output_dir"] == node.outputs[0]
        elif node.kind == "merge":
            assert str(node.config) in expanded.files


def test_clusters_differ_in_the_cluster_only():
    expanded = plan(spec({"dtm": {"clusters": 3, "seed": 7}}))
    clusters = [keys(expanded, f"recipes/cluster-{index}.yaml") for index in range(3)]
    assert [one.pop("disperse_cluster") for one in clusters] == [0, 1, 2]
    assert [one.pop("output_dir") for one in clusters] == [f"outputs/cluster-{index}" for index in range(3)]
    assert clusters[0] == clusters[1] == clusters[2]
    assert clusters[0]["disperse_seed"] == 7
    assert clusters[0]["plugins"] == ["untax.DispersePlugin"]


def test_sparse_sft_differs_from_sft_in_the_penalty_only():
    expanded = plan(spec({"vanilla": {}, "paft": {"delta_l1": 0.001}}))
    sft, sparse = keys(expanded, "recipes/sft.yaml"), keys(expanded, "recipes/sft-sparse.yaml")
    assert sparse.pop("delta_l1") == 0.001
    for one in (sft, sparse):
        del one["plugins"], one["output_dir"]
    assert sft == sparse


def test_first_turn_needs_its_plugin_in_every_sft():
    expanded = plan(spec({"vanilla": {}, "paft": {}, "dtm": {}}, first_turn=True))
    for name in ("sft", "sft-sparse", "cluster-0"):
        content = keys(expanded, f"recipes/{name}.yaml")
        assert content["disperse_first_turn"] is True
        assert content["plugins"].count("untax.DispersePlugin") == 1
        assert ("untax.DeltaPenaltyPlugin" in content["plugins"]) == (name == "sft-sparse")


@pytest.mark.parametrize("first_turn", [False, True])
def test_the_recipes_plugins_come_behind_untaxs_own(first_turn: bool):
    liger = "axolotl.integrations.liger.LigerPlugin"
    training = {
        "sft": {"plugins": [liger, "untax.ManifestPlugin", "untax.DispersePlugin"]},
        "preference": {"plugins": [liger]},
    }
    expanded = plan(spec({"vanilla": {}, "paft": {}, "dtm": {}}, training=training, first_turn=first_turn))
    own = {
        "sft": ["untax.DispersePlugin" if first_turn else "untax.ManifestPlugin"],
        "sft-sparse": [*(["untax.DispersePlugin"] if first_turn else []), "untax.DeltaPenaltyPlugin"],
        "cluster-0": ["untax.DispersePlugin"],
        "dpo": ["untax.ManifestPlugin"],
    }
    assert {name: keys(expanded, f"recipes/{name}.yaml")["plugins"] for name in own} == {
        name: [*plugins, liger] for name, plugins in own.items()
    }


def test_launch_commands_can_be_pasted():
    for text in plan(spec({"vanilla": {}}), folder="my run/it's").files.values():
        command = next(line for line in text.splitlines() if line.startswith("# Run:   ")).removeprefix("# Run:   ")
        assert shlex.split(command)[:3] == ["cd", "my run/it's", "&&"]


def test_sequential_starts_from_the_sft_result():
    expanded = plan(spec({"sequential": {}}))
    assert keys(expanded, "recipes/dpo-sequential.yaml")["base_model"] == "outputs/vanilla"
    needs = {node.name: node.needs for node in expanded.nodes}
    assert needs["dpo-sequential"] == ("vanilla",)
    assert set(needs["sequential"]) == {"vanilla", "dpo-sequential"}
    assert [model.arm for model in expanded.models] == ["base", "sequential"]


def test_merges_are_named_by_method_until_arms_mix():
    alone = plan(spec({"vanilla": {}, "dtm": {"merge": ["average", "ties"], "scales": [1, 0.5]}}))
    assert {"average", "average-0.5", "ties", "ties-0.5"} < set(names(alone))
    mixed = plan(spec({"dtm": {"merge": ["average", "ties"]}, "paft": {"merge": ["ties"]}}))
    assert {"dtm", "dtm-ties", "paft-ties"} < set(names(mixed))


def test_header_says_purpose_prerequisite_and_launch_command():
    for name, text in plan(demo_spec(), folder="demo-run").files.items():
        header = [line for line in text.splitlines() if line.startswith("#")]
        tool = "axolotl train" if name.startswith("recipes/") else "mergekit-yaml"
        assert any(line.startswith("# Needs: ") for line in header)
        assert any(line.startswith(f"# Run:   cd demo-run && {tool} {name}") for line in header)


def test_device_decides_precision_and_kernels():
    cpu, cuda = (keys(plan(spec({"vanilla": {}}, device=device)), "recipes/sft.yaml") for device in ("cpu", "cuda"))
    assert (cpu["bf16"], cpu["lora_mlp_kernel"]) == (False, False)
    assert cuda["bf16"] == "auto"
    assert "lora_mlp_kernel" not in cuda


CHECKPOINTS = ("saves_per_epoch", "save_steps", "save_strategy", "save_total_limit", "auto_resume_from_checkpoints")


def checkpoints(expanded: Plan, name: str = "recipes/sft.yaml") -> dict[str, Any]:
    return {key: value for key, value in keys(expanded, name).items() if key in CHECKPOINTS}


@pytest.mark.parametrize(
    ("device", "own"), [("cpu", {"save_strategy": "no"}), ("cuda", {"save_steps": 0.05, "save_total_limit": 1})]
)
@pytest.mark.parametrize("given", [{}, {"saves_per_epoch": 2}, {"save_steps": 10}, {"save_strategy": "epoch"}])
def test_one_word_on_when_checkpoints_are_saved(device: str, own: dict[str, Any], given: dict[str, Any]):
    """Axolotl refuses these keys beside each other, so ours goes where there is another, at whatever place."""
    kept = {key: value for key, value in own.items() if not given or key == "save_total_limit"}
    wanted = {**kept, **given, "auto_resume_from_checkpoints": True}
    for said in (
        {"axolotl": given},
        {"training": {"sft": given}},
        {"nodes": {"sft": {"axolotl": given}}},
    ):
        assert checkpoints(plan(spec({"vanilla": {}}, device=device, **said))) == wanted
    soup = plan(spec({"soup": {"runs": [{}, {"learning_rate": 0.1, **given}]}}, device=device))
    assert checkpoints(soup, "recipes/soup-1.yaml") == wanted


def test_a_single_training_keeps_what_the_recipe_says_on_saving():
    node = {"nodes": {"sft": {"axolotl": {"save_strategy": "steps"}}}, "axolotl": {"save_steps": 7}}
    assert checkpoints(plan(spec({"vanilla": {}}, device="cuda", **node))) == {
        **{"save_steps": 7, "save_strategy": "steps"},
        **{"save_total_limit": 1, "auto_resume_from_checkpoints": True},
    }


def test_own_settings_win_and_carry_no_paper():
    text = plan(
        spec({"vanilla": {}}, settings="dtm", training={"sft": {"lora_r": 8, "lora_alpha": 16, "bf16": True}})
    ).files["recipes/sft.yaml"]
    assert "lora_r: 8\n" in text
    assert "lora_alpha: 16  # DTM table 10" in text
    assert yaml.safe_load(text)["bf16"] is True


@pytest.mark.parametrize("value", [1e-4, 5e-6, 1.2345e-9, 1e-12, 0.0, 0.1, 2.0, 123456.5, 1e300, 1e-300, float("inf")])
def test_numbers_are_read_back_as_numbers(value: float):
    assert yaml.safe_load(dump({"x": value})) == {"x": value}


def test_dispersal_options_reach_every_sub_model():
    arm = {"clusters": 2, "strategy": "kmeans", "text": "both", "embedder": "tfidf", "seed": 7}
    expanded = plan(spec({"dtm": arm}))
    for cluster in range(2):
        written = keys(expanded, f"recipes/cluster-{cluster}.yaml")
        assert {key: value for key, value in written.items() if key.startswith("disperse_")} == {
            "disperse_clusters": 2,
            "disperse_cluster": cluster,
            "disperse_strategy": "kmeans",
            "disperse_seed": 7,
            "disperse_text": "both",
            "disperse_embedder": "tfidf",
            "disperse_assignment": "outputs/disperse/assignment.parquet",
        }
