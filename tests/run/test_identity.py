"""When a training is what its YAML asks for: by content, wherever things lie and whatever they are called."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from toys import BASE, sft_rows, write_jsonl
from untax.data.corpus import entries_digest
from untax.manifest import digest_file, digest_files, digest_model, write_manifest
from untax.recipes.graph import Node
from untax.run.done import awaits_rows, begun_otherwise, unfinished, version_changes
from untax.run.identity import judge_training, present_inputs
from untax.training.asked import Asked, differences, plain

CONFIG: dict[str, Any] = {
    "base_model": "base",
    "datasets": [{"path": "sft.jsonl", "type": "alpaca"}, {"path": "json", "data_files": "more.jsonl"}],
    "test_datasets": [{"path": "held", "type": "alpaca"}],
    "deepspeed": "zero.json",
    "chat_template_jinja": "chat.jinja",
    "tokenizer_config": "tokens",
    "delta_l2": 0.1,
    "plugins": ["untax.DeltaPenaltyPlugin"],
    "learning_rate": 0.0001,
    "sample_packing": True,
    "special_tokens": {"pad_token": "<unk>"},
    "output_dir": "outputs/sft",
}
TRAIN = Node("sft", "train", ("axolotl", "train", "sft.yaml"), ("outputs/sft",), "sft.yaml")
PENALTY = {"target": "product", "schedule": "constant", "only": None, "sparsity_target": None, "l2": 0.1}
SECTIONS: dict[str, Any] = {
    "training": {"kind": "sft", "rows": 3, "steps": 2, "loss_first": 2.0, "loss_last": 1.0, "losses_not_finite": 0},
    "penalty": {**PENALTY, "modules": 1, "steps_penalised": 2},
    "weights": {"tensors": 2, "deltas": 1, "zero_deltas": 0, "not_finite": None},
}
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with a finished training, as far as its manifest tells."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BASE, "base")
    for name, count in (("sft.jsonl", 3), ("more.jsonl", 2)):
        write_jsonl(Path(name), sft_rows(count))
    for name in ("held", "tokens"):
        Path(name).mkdir()
    write_jsonl(Path("held/one.jsonl"), sft_rows(1))
    Path("tokens/tokenizer.json").write_text("{}")
    Path("zero.json").write_text("{}")
    Path("chat.jinja").write_text("{{ messages }}")
    Path("sft.yaml").write_text(yaml.safe_dump(CONFIG))
    adapter(CONFIG)
    monkeypatch.chdir("/")
    return tmp_path


def adapter(config: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """Write what a training leaves."""
    out = Path("outputs/sft")
    out.mkdir(parents=True, exist_ok=True)
    factors = {f"base_model.model.m.lora_{name}.weight": np.ones((1, 1), np.float32) for name in "AB"}
    save_file(factors, out / "adapter_model.safetensors")
    (out / "adapter_config.json").write_text("{}")
    return write_manifest(
        out,
        what="adapter",
        outputs=["adapter_config.json", "adapter_model.safetensors"],
        started=0.0,
        config={"path": "sft.yaml", "digest": digest_file(Path("sft.yaml")), "keys": plain(config)},
        inputs=present_inputs(config, Path()),
        **{**SECTIONS, **sections},
    )


def edit(run: Path, change: Edit) -> None:
    config = copy.deepcopy(CONFIG)
    change(config)
    (run / "sft.yaml").write_text(yaml.safe_dump(config))


def test_all_that_the_yaml_names_is_known(run: Path):
    inputs = present_inputs(CONFIG, run)
    assert inputs == {
        "base": digest_model(run / "base"),
        "deepspeed": digest_file(run / "zero.json"),
        "chat_template_jinja": digest_file(run / "chat.jinja"),
        "tokenizer_config": digest_files(run / "tokens", ["*"]),
        "datasets/sft.jsonl": digest_file(run / "sft.jsonl"),
        "datasets/json:more.jsonl": inputs["datasets/json:more.jsonl"],
        "test_datasets/held": digest_files(run / "held", ["*"]),
    }
    assert len(inputs["datasets/json:more.jsonl"]) == 64


@pytest.mark.parametrize(
    "text",
    [
        "# a comment\n" + yaml.safe_dump(CONFIG),
        yaml.safe_dump(CONFIG, sort_keys=False, default_style='"').replace('"0.0001"', "1e-4"),
        json.dumps(CONFIG),
        yaml.safe_dump({**CONFIG, "dataset_prepared_path": "elsewhere"}),
    ],
)
def test_how_a_yaml_is_written_is_no_reason(run: Path, text: str):
    # In quotes PyYAML needs its tags to keep numbers numbers.
    assert plain(yaml.safe_load(text)) != {}
    (run / "sft.yaml").write_text(text)
    assert unfinished(TRAIN, run, None) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda config: config.update(learning_rate=0.0002), "sft.yaml was changed: learning_rate"),
        (lambda config: config.update(seed=1, sample_packing=False), "sft.yaml was changed: sample_packing, seed"),
        (lambda config: config["datasets"].reverse(), "sft.yaml was changed: datasets"),
        (lambda config: config["datasets"].pop(), "sft.yaml was changed: datasets"),
        (lambda config: config["datasets"][0].update(type="chat"), "sft.yaml was changed: datasets"),
        (lambda config: config["datasets"][1].update(data_files="sft.jsonl"), "sft.yaml was changed: datasets"),
        (lambda config: config["special_tokens"].update(pad_token="</s>"), "sft.yaml was changed: special_tokens"),
        (lambda config: config.pop("deepspeed"), "deepspeed was changed"),
        (lambda config: config.pop("plugins"), "sft.yaml was changed: plugins"),
    ],
)
def test_what_a_yaml_says_is_a_reason(run: Path, change: Edit, reason: str):
    edit(run, change)
    assert unfinished(TRAIN, run, None) == f"outputs/sft: {reason}"


SAVED: dict[str, Any] = {
    **{"save_steps": 0.05, "save_total_limit": 1, "auto_resume_from_checkpoints": True, "logging_steps": 5},
    **{"use_wandb": True, "wandb_project": "mine", "use_tensorboard": True},
}


def test_what_is_saved_and_reported_decides_no_weight(run: Path):
    begun = {"config": "x", "keys": plain(CONFIG), "inputs": present_inputs(CONFIG, run)}
    edit(run, lambda config: config.update(SAVED))
    assert unfinished(TRAIN, run, None) is None
    assert begun_otherwise(begun, Path("sft.yaml"), run) is None
    edit(run, lambda config: config.update(**SAVED, learning_rate=0.0002))
    assert unfinished(TRAIN, run, None) == "outputs/sft: sft.yaml was changed: learning_rate"
    assert begun_otherwise(begun, Path("sft.yaml"), run) == "learning_rate was changed"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("base/config.json", "base"),
        ("tokens/tokenizer.json", "tokenizer_config"),
        ("sft.jsonl", "datasets/sft.jsonl"),
        ("more.jsonl", "datasets/json:more.jsonl"),
        ("held/one.jsonl", "test_datasets/held"),
        ("zero.json", "deepspeed"),
        ("chat.jinja", "chat_template_jinja"),
    ],
)
def test_the_content_of_an_input_is_a_reason(run: Path, file: str, name: str):
    (run / file).write_text((run / file).read_text() + "\n")
    assert unfinished(TRAIN, run, None) == f"outputs/sft: {name} was changed"


def test_files_that_a_pattern_names_are_inputs(run: Path, monkeypatch: pytest.MonkeyPatch):
    config = {**CONFIG, "datasets": [{"path": "json", "type": "alpaca", "data_files": "parts/*.jsonl"}]}
    monkeypatch.chdir(run)
    for name in ("parts/a.jsonl", "parts/b.jsonl"):
        write_jsonl(Path(name), sft_rows(2))
    (run / "sft.yaml").write_text(yaml.safe_dump(config))
    adapter(config)
    monkeypatch.chdir("/")
    assert unfinished(TRAIN, run, None) is None
    write_jsonl(run / "parts/b.jsonl", sft_rows(3))
    assert unfinished(TRAIN, run, None) == "outputs/sft: datasets/json:parts/*.jsonl was changed"


def test_where_inputs_lie_is_no_reason(run: Path):
    moved = run.rename(run.with_name("elsewhere"))
    assert unfinished(TRAIN, moved, None) is None
    (moved / "data").mkdir()
    for name in ("base", "sft.jsonl", "more.jsonl", "held", "tokens", "zero.json", "chat.jinja"):
        (moved / name).rename(moved / "data" / name)
    config = copy.deepcopy(CONFIG)
    config.update(base_model=str(moved / "data/base"), deepspeed="data/zero.json", tokenizer_config="data/tokens")
    config["chat_template_jinja"] = "data/chat.jinja"
    config["datasets"][0]["path"] = "./data/sft.jsonl"
    config["datasets"][1]["data_files"] = ["data/more.jsonl"]
    config["test_datasets"][0]["path"] = "data/held"
    (moved / "sft.yaml").write_text(yaml.safe_dump(config))
    assert unfinished(TRAIN, moved, None) is None
    (moved / "data/sft.jsonl").write_text("{}\n")
    assert unfinished(TRAIN, moved, None) == "outputs/sft: sft.yaml was changed: datasets"


def test_the_tokenizer_of_a_base_is_an_input(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(run)
    config = {key: value for key, value in CONFIG.items() if key != "tokenizer_config"}
    Path("sft.yaml").write_text(yaml.safe_dump(config))
    adapter(config)
    assert unfinished(TRAIN, run, None) is None
    Path("base/chat_template.jinja").write_text("{{ messages }}")
    assert unfinished(TRAIN, run, None) == "outputs/sft: tokenizer was changed"


def test_data_that_are_gone_were_not_changed(run: Path):
    (run / "sft.jsonl").unlink()
    assert unfinished(TRAIN, run, None) is None
    edit(run, lambda config: config["datasets"][0].update(path="other.jsonl"))
    assert unfinished(TRAIN, run, None) == "outputs/sft: sft.yaml was changed: datasets"


def test_a_manifest_of_an_older_version_is_compared_by_the_text(run: Path):
    path = run / "outputs/sft/untax.json"
    manifest = json.loads(path.read_text())
    del manifest["config"]["keys"], manifest["weights"]
    path.write_text(json.dumps(manifest))
    assert unfinished(TRAIN, run, None) is None
    (run / "sft.yaml").write_text("# a comment\n" + (run / "sft.yaml").read_text())
    assert unfinished(TRAIN, run, None) == "outputs/sft: sft.yaml was changed"


def test_checkpoints_follow_the_same_rule(run: Path):
    begun = {"config": "x", "keys": plain(CONFIG), "inputs": present_inputs(CONFIG, run)}
    (run / "sft.yaml").write_text("# a comment\n" + (run / "sft.yaml").read_text())
    assert begun_otherwise(begun, Path("sft.yaml"), run) is None
    edit(run, lambda config: config.update(seed=1))
    assert begun_otherwise(begun, Path("sft.yaml"), run) == "seed was changed"
    old = {"config": digest_file(run / "sft.yaml"), "inputs": {"datasets/sft.jsonl": digest_file(run / "sft.jsonl")}}
    assert begun_otherwise(old, Path("sft.yaml"), run) is None
    assert begun_otherwise({**old, "config": "x"}, Path("sft.yaml"), run) == "sft.yaml was changed"


def test_another_version_is_shown_and_a_reason_only_if_asked_for(run: Path):
    path = run / "outputs/sft/untax.json"
    manifest = json.loads(path.read_text())
    present = manifest["versions"]["peft"]
    manifest["versions"].update(peft="0.1", mergekit="0.1", lm_eval="0.1")
    path.write_text(json.dumps(manifest))
    assert version_changes(TRAIN, run) == {"peft": ("0.1", present)}
    assert unfinished(TRAIN, run, None) is None
    said = unfinished(TRAIN, run, None, rerun_on_version=True)
    assert said == f"it was made with peft 0.1, and {present} is here"


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
values = st.recursive(scalars, lambda own: st.lists(own, max_size=3) | st.dictionaries(st.text(max_size=3), own))


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(*at, key) for key, _ in items] + [place for key, item in items for place in places(item, (*at, key))]


@given(data=st.data())
def test_no_manifest_ends_in_a_traceback(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.getbasetemp() / "mutated"
    if not folder.exists():
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            write_jsonl(Path("a.jsonl"), sft_rows(2))
            dispersed_folder(folder)
    node = data.draw(st.sampled_from([DISPERSED, DISPERSE]))
    path = folder / node.outputs[0] / "untax.json"
    original = path.read_text()
    manifest = json.loads(original)
    place = data.draw(st.sampled_from(places(manifest)))
    section = manifest
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = data.draw(values)
    try:
        path.write_text(json.dumps(manifest))
        for one in (DISPERSE, DISPERSED):
            assert isinstance(unfinished(one, folder, None), str | None)
            assert isinstance(version_changes(one, folder), dict)
            assert isinstance(awaits_rows(one, folder), bool)
    finally:
        path.write_text(original)


DISPERSE = Node("disperse", "disperse", ("untax", "disperse", "sft.yaml"), ("outputs/disperse",), "sft.yaml")
DISPERSED = Node("sft", "train", ("axolotl", "train", "sft.yaml"), ("outputs/sft",), "sft.yaml", needs=("disperse",))


def dispersed(paths: str, clusters: int, cluster: int) -> dict[str, Any]:
    return {
        "base_model": "org/base",
        "datasets": [{"path": f"{name}.jsonl", "type": "alpaca"} for name in paths],
        "plugins": ["untax.DispersePlugin"],
        "disperse_clusters": clusters,
        "disperse_cluster": cluster,
        "disperse_strategy": "column",
        "disperse_assignment": "outputs/disperse/assignment.parquet",
    }


def assignment(paths: str, contents: list[dict[str, str]], sizes: dict[str, list[int]]) -> None:
    """Write what a dispersal leaves, as far as its manifest tells."""
    out = Path("outputs/disperse")
    out.mkdir(parents=True, exist_ok=True)
    (out / "assignment.parquet").write_bytes(b"A")
    entries = dispersed(paths, 2, 0)["datasets"]
    write_manifest(
        out,
        what="assignment",
        outputs=["assignment.parquet"],
        started=0.0,
        inputs={f"datasets/{name}.jsonl": digest_file(Path(f"{name}.jsonl")) for name in paths},
        disperse={
            **{"entries": entries_digest(entries), "strategy": "column", "seed": 42, "clusters": len(contents)},
            **{"first_turn": False, "column": "source", "sources": sizes, "contents": contents},
        },
    )


def dispersed_folder(folder: Path) -> None:
    """Cluster 0 of 2, trained, of one file with two sources."""
    config = dispersed("a", 2, 0)
    Path("sft.yaml").write_text(yaml.safe_dump(config))
    assignment("a", [{"0": "x"}, {"0": "y"}], {"0:a.jsonl": [1, 1]})
    read = [{"entry": {"type": "alpaca"}, "rows": 1, "digest": "x"}]
    section = {"clusters": 2, "cluster": 0, "rows": 1, "rows_read": 1, "trained_on": read}
    adapter(config, penalty=None, disperse=section, training={**SECTIONS["training"], "rows": 1})
    assert unfinished(DISPERSED, folder, None) is None
    assert unfinished(DISPERSE, folder, None) is None


def test_of_a_dispersed_training_only_its_rows_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("a.jsonl"), sft_rows(2))
    write_jsonl(Path("b.jsonl"), sft_rows(1))
    dispersed_folder(tmp_path)
    more = dispersed("ab", 3, 1)
    Path("sft.yaml").write_text(yaml.safe_dump(more))
    # Until the corpus has been dispersed again nobody knows.
    assert "known when the corpus has been dispersed" in str(unfinished(DISPERSED, tmp_path, None))
    assert awaits_rows(DISPERSED, tmp_path)
    assert not awaits_rows(DISPERSE, tmp_path)
    sizes = {"0:a.jsonl": [1, 1, 0], "1:b.jsonl": [0, 0, 1]}
    assignment("ab", [{"0": "y"}, {"0": "x"}, {"1": "z"}], sizes)
    assert unfinished(DISPERSED, tmp_path, None) is None, "the same rows under another number"
    assignment("ab", [{"0": "x"}, {"0": "y"}, {"1": "z"}], sizes)
    assert unfinished(DISPERSED, tmp_path, None) == "outputs/sft: sft.yaml was changed: the rows of its cluster"
    assert not awaits_rows(DISPERSED, tmp_path)
    assignment("ab", [{"0": "y"}, {"0": "x", "1": "x"}, {"1": "z"}], sizes)
    assert "the rows of its cluster" in str(unfinished(DISPERSED, tmp_path, None))
    # How rows are used counts as well, and so does everything else in the YAML.
    assignment("ab", [{"0": "y"}, {"0": "x"}, {"1": "z"}], sizes)
    more["datasets"][0]["type"] = "chat_template"
    Path("sft.yaml").write_text(yaml.safe_dump(more))
    assert "the rows of its cluster" in str(unfinished(DISPERSED, tmp_path, None))
    Path("sft.yaml").write_text(yaml.safe_dump({**dispersed("ab", 3, 1), "seed": 1}))
    assert unfinished(DISPERSED, tmp_path, None) == "outputs/sft: sft.yaml was changed: seed"
    Path("sft.yaml").write_text(yaml.safe_dump({**dispersed("ab", 4, 1), "seed": 1}))
    assert not awaits_rows(DISPERSED, tmp_path), "it runs in any case"


def test_a_stale_assignment_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("a.jsonl"), sft_rows(2))
    dispersed_folder(tmp_path)
    write_jsonl(Path("a.jsonl"), sft_rows(3))
    assert unfinished(DISPERSE, tmp_path, None) == "outputs/disperse: datasets/a.jsonl was changed"
    assert awaits_rows(DISPERSED, tmp_path)
    shutil.rmtree("outputs/disperse")
    write_jsonl(Path("a.jsonl"), sft_rows(2))
    assert unfinished(DISPERSED, tmp_path, None) is None, "an assignment that was removed is no reason"


def test_differences_are_none_with_oneself_and_named_otherwise():
    asked = Asked(CONFIG, {"base": "b" * 64}, None)
    assert differences(asked, asked) == []
    assert differences(asked, Asked({**CONFIG, "base_model": "other"}, {"base": "c" * 64})) == ["base_model"]
    assert differences(Asked({}, {}), Asked({"seed": 1}, {})) == ["seed"]
    # Axolotl does not shuffle then, and does by default.
    assert differences(Asked({}), Asked({"shuffle_merged_datasets": None})) == ["shuffle_merged_datasets"]
    assert not judge_training(Asked({"base_model": "org/base"}), {"base_model": "org/base"}, Path("/nowhere")).changed
