"""What a real run runs again after its recipe or its data changed, and what it does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from untax.demo.demo import BUNDLE, demo_spec

Untax = Callable[..., Any]


def lines(start: int, stop: int) -> str:
    """Rows of the bundled data without their column of sources, so that each file is a source of its own."""
    rows = map(json.loads, (BUNDLE / "data/sft.jsonl").read_text().splitlines()[start:stop])
    kept = [{key: value for key, value in row.items() if key != "source"} for row in rows]
    return "".join(json.dumps(row) + "\n" for row in kept)


@pytest.fixture(scope="module")
def by_source(tmp_path_factory: pytest.TempPathFactory, untax: Untax) -> Path:
    """A finished run over two datasets, each a cluster of its own, the second one the larger."""
    folder = tmp_path_factory.mktemp("reruns") / "run"
    folder.mkdir()
    for name, start, stop in (("a", 0, 8), ("b", 8, 20), ("c", 20, 60)):
        (folder / f"{name}.jsonl").write_text(lines(start, stop))
    shutil.copytree(BUNDLE / "base", folder / "base")
    arm = {"clusters": 2, "strategy": "column", "scales": [1.0]}
    content = demo_spec().model_dump(exclude_none=True, exclude={"suite", "preference"})
    content["arms"] = {"dtm": arm}
    content["sft"] = [{"path": f"{name}.jsonl", "type": "alpaca"} for name in "ab"]
    (folder / "untax.yaml").write_text(yaml.safe_dump(content))
    untax("recipe", "--from", folder / "untax.yaml", "-o", folder)
    untax("run", folder)
    return folder


def rewrite(folder: Path, untax: Untax, **changes: Any) -> None:
    """Change the recipe's text and write its YAMLs again, as a user does."""
    spec = folder / "untax.yaml"
    spec.write_text(yaml.safe_dump({**yaml.safe_load(spec.read_text()), **changes}))
    untax("recipe", "--from", spec, "-o", folder)


def made(folder: Path) -> dict[str, tuple[int, str]]:
    """Output -> when its manifest was written, and what the digest of its weights is."""
    return {
        path.parent.name: (path.stat().st_mtime_ns, json.dumps(json.loads(path.read_text())["outputs"]))
        for path in folder.glob("outputs/*/untax.json")
    }


def ran_again(before: dict[str, tuple[int, str]], after: dict[str, tuple[int, str]]) -> set[str]:
    return {name for name, found in after.items() if found != before.get(name)}


@pytest.mark.slow
def test_a_cluster_of_new_data_trains_one_model_and_merges_again(by_source: Path, untax: Untax):
    before = made(by_source)
    assert set(before) == {"disperse", "cluster-0", "cluster-1", "average"}
    sft = [{"path": f"{name}.jsonl", "type": "alpaca"} for name in "abc"]
    arm = {**yaml.safe_load((by_source / "untax.yaml").read_text())["arms"]["dtm"], "clusters": 3}
    rewrite(by_source, untax, sft=sft, arms={"dtm": arm})
    assert "cluster-1: axolotl train" in untax("run", by_source, "--dry-run").stdout, "that depends on the dispersal"
    said = untax("run", by_source).stdout
    after = made(by_source)
    assert ran_again(before, after) == {"disperse", "cluster-2", "average"}, said
    section = json.loads((by_source / "outputs/disperse/untax.json").read_text())["disperse"]
    assert section["sizes"] == [8, 12, 40]
    manifests = [json.loads((by_source / f"outputs/cluster-{k}/untax.json").read_text()) for k in range(3)]
    assert [manifest["disperse"]["clusters"] for manifest in manifests] == [2, 2, 3]
    assert [manifest["disperse"]["rows"] for manifest in manifests] == [8, 12, 40]
    untax("run", by_source)
    assert made(by_source) == after, "and then nothing"

    # The same from nothing gives the same weights: those that were kept are what would be trained now.
    fresh = by_source.parent / "fresh"
    shutil.copytree(by_source, fresh, ignore=shutil.ignore_patterns("outputs", ".untax"))
    untax("run", fresh)
    weights = [by_source / "outputs/average/model.safetensors", fresh / "outputs/average/model.safetensors"]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    # One more way of merging trains nothing.
    rewrite(by_source, untax, arms={"dtm": {**arm, "merge": ["average", "ties"]}})
    untax("run", by_source)
    assert ran_again(after, made(by_source)) == {"ties"}
    after = made(by_source)

    # One row more in one dataset: its cluster alone.
    with (by_source / "b.jsonl").open("a") as handle:
        handle.write(lines(70, 71))
    untax("run", by_source)
    assert ran_again(after, made(by_source)) == {"disperse", "cluster-1", "average", "ties"}
    after = made(by_source)

    # What only moved, and what is only written otherwise, is no reason.
    (by_source / "base").rename(by_source / "model")
    rewrite(by_source, untax, base="./model")
    config = by_source / "recipes/cluster-0.yaml"
    config.write_text("# a comment\n" + yaml.safe_dump(yaml.safe_load(config.read_text()), sort_keys=True))
    moved = by_source.rename(by_source.with_name("elsewhere"))
    untax("run", moved)
    assert ran_again(after, made(moved)) == set()

    # The training's own settings are one.
    config = moved / "recipes/cluster-0.yaml"
    config.write_text(config.read_text().replace("learning_rate: 0.001", "learning_rate: 0.002"))
    said = untax("run", moved, "--dry-run").stdout
    assert "recipes/cluster-0.yaml was changed: learning_rate" in said
    assert "axolotl train recipes/cluster-1.yaml" not in said
