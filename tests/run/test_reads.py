"""What edited YAMLs read decides what waits for what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from untax.errors import UntaxError
from untax.recipes.graph import Node, Plan
from untax.run.reads import as_read, maker, reads


def training(folder: Path, name: str, *needs: str, **content: Any) -> Node:
    config = written(folder, f"recipes/{name}.yaml", {"base_model": "./base", **content})
    return Node(name, "train", ("axolotl", "train", config), (f"outputs/{name}",), config, needs)


def merge(folder: Path, name: str, *needs: str, **content: Any) -> Node:
    config = written(folder, f"mergekit_configs/{name}.yaml", content)
    output = f"outputs/{name}"
    return Node(name, "merge", ("untax", "merge", config, output), (output,), config, needs)


def written(folder: Path, name: str, content: dict[str, Any]) -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return name


def replay(like: str) -> Node:
    command = ("untax", "replay", "--texts", "c4.txt", "--like", like, "--ratio", "1", "-o", "outputs/replay-text")
    return Node("replay-text", "replay", command, ("outputs/replay-text",), like)


def fisher(model: str = "./base", data: str = "outputs/replay-text/replay.jsonl") -> Node:
    command = ("untax", "fisher", model, f"--data={data}", "-o", "outputs/fisher/fisher.safetensors")
    return Node("fisher", "fisher", command, ("outputs/fisher",))


def ordered(plan: Plan) -> dict[str, tuple[str, ...]]:
    return {node.name: node.needs for node in plan.nodes}


def test_every_kind_of_input_is_waited_for(tmp_path: Path):
    mixed = [{"path": "data/sft.jsonl"}, {"path": "./outputs/replay-text/replay.jsonl", "type": "completion"}]
    nodes = (
        training(tmp_path, "dpo", base_model="outputs/vanilla"),
        merge(tmp_path, "vanilla", models=[{"model": "./base+./outputs/sft"}], parameters={"x": "outputs/fisher/f"}),
        training(tmp_path, "sft", datasets=mixed, delta_ewc_fisher="outputs/fisher/fisher.safetensors"),
        fisher(),
        replay("recipes/sft.yaml"),
        Node("score", "score", ("untax", "eval"), ("results/vanilla",), models=("outputs/vanilla",)),
    )
    found = ordered(as_read(Plan({}, nodes, ()), tmp_path))
    assert found == {
        "replay-text": (),
        "fisher": ("replay-text",),
        "sft": ("fisher", "replay-text"),
        "vanilla": ("sft", "fisher"),
        "dpo": ("vanilla",),
        "score": ("vanilla",),
    }
    names = list(found)
    assert all(names.index(need) < names.index(name) for name, needs in found.items() for need in needs)


def test_a_plan_as_written_stays_as_it_is(tmp_path: Path):
    nodes = (training(tmp_path, "sft"), merge(tmp_path, "vanilla", "sft", models=[{"model": "./base+./outputs/sft"}]))
    assert as_read(Plan({}, nodes, ()), tmp_path).nodes == nodes


def test_a_cycle_is_refused_with_its_nodes_and_yamls(tmp_path: Path):
    nodes = (
        training(tmp_path, "sft", base_model="./outputs/vanilla"),
        merge(tmp_path, "vanilla", "sft", models=[{"model": "./base+./outputs/sft"}]),
        training(tmp_path, "dpo"),
    )
    with pytest.raises(UntaxError) as caught:
        as_read(Plan({}, nodes, ()), tmp_path)
    message = str(caught.value)
    assert "Nodes wait for each other" in message
    assert "recipes/sft.yaml reads ./outputs/vanilla" in message
    assert "mergekit_configs/vanilla.yaml reads ./outputs/sft" in message
    assert "dpo" not in message


def test_a_cycle_through_the_replay_text(tmp_path: Path):
    """The instruction data that is counted may not be made of what trains on it."""
    rows = [{"path": "outputs/vanilla/rows.jsonl"}, {"path": "outputs/replay-text/replay.jsonl"}]
    nodes = (
        replay("recipes/sft.yaml"),
        training(tmp_path, "sft", "replay-text", datasets=rows),
        merge(tmp_path, "vanilla", "sft", models=[{"model": "./base+./outputs/sft"}]),
    )
    with pytest.raises(UntaxError, match="Nodes wait for each other") as caught:
        as_read(Plan({}, nodes, ()), tmp_path)
    assert "recipes/sft.yaml reads outputs/vanilla/rows.jsonl" in str(caught.value)


def test_who_makes_a_path():
    nodes = (Node("a", "merge", (), ("outputs/a",)), Node("ab", "merge", (), ("outputs/ab", "outputs/c")))
    assert maker("./outputs/a", nodes) == maker("outputs/a/x/y", nodes) == maker("outputs//a", nodes) == "a"
    assert maker("outputs/ab", nodes) == maker("outputs/c/f", nodes) == "ab"
    assert maker("outputs/abc", nodes) is maker("meta-llama/Llama-2-7b-hf", nodes) is maker("a", nodes) is None


def test_a_statistic_of_base_and_adapter_reads_both(tmp_path: Path):
    assert reads(fisher("org/base+./outputs/sft", "d.jsonl"), tmp_path) == ["org/base", "./outputs/sft", "d.jsonl"]


def test_a_dispersal_waits_for_its_data_only(tmp_path: Path):
    config = written(tmp_path, "x.yaml", {"base_model": "./outputs/b", "datasets": [{"path": "outputs/a/d.jsonl"}]})
    node = Node("disperse", "disperse", ("untax", "disperse", config), ("outputs/disperse",), config)
    assert reads(node, tmp_path) == ["outputs/a/d.jsonl"]
