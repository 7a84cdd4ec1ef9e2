"""Whether a merge is the one that its YAML asks for, and whether `untax run` and `untax merge` agree on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tiny_adapters import peft_llama
from toys import BASE
from untax.errors import UntaxError
from untax.manifest import digest_model, write_manifest
from untax.merge.asked import differences
from untax.merge.merge import merge
from untax.recipes.graph import Node
from untax.run.done import unfinished

MERGE = Node("average", "merge", ("untax", "merge", "m.yaml", "outputs/out"), ("outputs/out",), "m.yaml")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a real merge of one adapter at two weights into its base."""
    monkeypatch.chdir(tmp_path)
    base, adapter = peft_llama(tmp_path / "made")
    for file in BASE.glob("tokenizer*"):
        shutil.copy(file, base)
    base.rename("base")
    Path("outputs").mkdir()
    for name in "ab":
        shutil.copytree(adapter, f"outputs/{name}")
        path = Path(f"outputs/{name}/adapter_config.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "base", "who": name}))
        write_manifest(
            path.parent, what="adapter", outputs=[path.name], started=0.0, inputs={"base": digest_model("base")}
        )
    write(config())
    merge(Path("m.yaml"), Path("outputs/out"), [], say=lambda sentence: None)
    return tmp_path


def config(base: str = "base", **changes: Any) -> dict[str, Any]:
    models = [{"model": f"{base}+outputs/{name}", "parameters": {"weight": 0.5}} for name in "ab"]
    return {"merge_method": "task_arithmetic", "base_model": base, "models": models, "dtype": "float32", **changes}


def write(content: dict[str, Any], comment: str = "") -> None:
    Path("m.yaml").write_text(comment + yaml.safe_dump(content))


def test_content_counts_and_not_text(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unfinished(MERGE, made, None) is None
    write(dict(reversed(config().items())), "# a comment\n")
    assert unfinished(MERGE, made, None) is None
    assert merge(Path("m.yaml"), Path("outputs/out"), [], say=lambda sentence: None) == [], "and for untax merge"
    write(config(dtype="bfloat16"))
    assert unfinished(MERGE, made, None) == "outputs/out: m.yaml was changed: dtype"
    with pytest.raises(UntaxError, match="other config"):
        merge(Path("m.yaml"), Path("outputs/out"), [], say=lambda sentence: None)


def test_a_base_that_moved_is_the_same(made: Path) -> None:
    Path("base").rename("model")
    write(config("model"))
    assert unfinished(MERGE, made, None) is None
    assert merge(Path("m.yaml"), Path("outputs/out"), [], say=lambda sentence: None) == []
    path = Path("model/config.json")
    path.write_text(path.read_text() + "\n")
    assert unfinished(MERGE, made, None) == "outputs/out: m.yaml was changed: base_model, model"


def test_adapters_count_by_their_content_and_their_place_in_the_list(made: Path) -> None:
    write(config(models=config()["models"][::-1]))
    assert unfinished(MERGE, made, None) == "outputs/out: m.yaml was changed: model"
    write(config())
    assert unfinished(MERGE, made, None) is None
    path = Path("outputs/b/adapter_config.json")
    path.write_text(path.read_text() + "\n")
    assert unfinished(MERGE, made, None) == "outputs/out: outputs/b was changed"
    shutil.rmtree("outputs/b")
    assert unfinished(MERGE, made, None) == "outputs/out: outputs/b was changed"


def test_of_hub_models_the_name_and_the_commit_count() -> None:
    keys = {"models": [{"model": "org/a+org/b"}]}
    inputs = {"org/a": "hub:org/a@1", "org/b": "not read"}
    assert differences(keys, inputs, keys, {}.get) == []
    assert differences(keys, inputs, keys, {"org/a": "hub:org/a@1", "org/b": "2" * 64}.get) == []
    assert differences(keys, inputs, keys, {"org/a": "hub:org/a@2"}.get) == ["org/a"]
    assert differences(keys, inputs, {"models": [{"model": "org/c+org/b"}]}, {}.get) == ["model"]
    assert differences(keys, inputs, {"models": [{"model": "org/a"}]}, {}.get) == ["model"]
    assert differences(keys, inputs, {**keys, "dtype": None}, {}.get) == []


def test_a_tokenizer_that_changed_makes_another_model():
    keys = {"base_model": "base", "models": [{"model": "base+a"}]}
    inputs = {"base": "1" * 64, "a": "2" * 64, "tokenizer of base": "3" * 64}
    assert differences(keys, inputs, keys, inputs.get) == []
    assert differences(keys, inputs, keys, {**inputs, "tokenizer of base": "4" * 64}.get) == ["tokenizer of base"]
    before = {name: digest for name, digest in inputs.items() if not name.startswith("tokenizer")}
    assert differences(keys, before, keys, inputs.get) == [], "of older merges nothing is known"
    moved = {"base_model": "b", "models": [{"model": "b+a"}]}
    there = {"b": "1" * 64, "a": "2" * 64, "tokenizer of b": "3" * 64}
    assert differences(keys, inputs, moved, there.get) == []
