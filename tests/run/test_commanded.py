"""When replay texts and statistics are finished: commands without a YAML of their own."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from toys import BASE, sft_rows, write_jsonl
from untax.manifest import digest_file, digest_model, write_manifest
from untax.recipes.graph import Node
from untax.replay.made import identities
from untax.replay.request import Like, TextSource, make_request, read_like
from untax.run.commands import same, values
from untax.run.done import unfinished
from untax.run.engine import chain_lengths
from untax.run.room import make_room

REPLAYED = "outputs/replay-text/replay.jsonl"
COMMAND = ("untax", "replay", "--texts", "c4.txt", "--base", "base", "--like", "like.yaml", "-o", "outputs/replay-text")
REPLAY = Node("replay-text", "replay", COMMAND, ("outputs/replay-text",), "like.yaml")
FISHER = Node(
    "fisher",
    "fisher",
    (
        "untax",
        "fisher",
        "base",
        "--data",
        "outputs/replay-text/replay.jsonl",
        "-o",
        "outputs/fisher/fisher.safetensors",
    ),
    ("outputs/fisher",),
    needs=("replay-text",),
)


def like_yaml(**changes: Any) -> dict[str, Any]:
    mixed = [
        {"path": "sft.jsonl", "type": "alpaca"},
        {"path": "outputs/replay-text/replay.jsonl", "type": "completion"},
    ]
    return {"base_model": "base", "datasets": mixed, "sequence_len": 64, "learning_rate": 0.1, **changes}


@pytest.fixture(autouse=True)
def _as_before() -> Any:
    """The commands silence what others log."""
    import logging

    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder in which both commands have done their work, as far as their manifests tell."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BASE, "base")
    write_jsonl(Path("sft.jsonl"), sft_rows(3))
    Path("c4.txt").write_text("One.\n\nTwo.\n\nThree.")
    Path("like.yaml").write_text(yaml.safe_dump(like_yaml()))
    out = Path("outputs/replay-text")
    out.mkdir(parents=True)
    (out / "replay.jsonl").write_text('{"text": "One."}\n')
    request = make_request(
        (TextSource("c4.txt"),),
        like=read_like(like_yaml(), Path(), out),
        base="base",
        sequence_len=None,
        rows=None,
        ratio=None,
        by=None,
        seed=42,
        trust_remote_code=False,
        where="test",
    )
    write_manifest(
        out,
        what="replay",
        outputs=["replay.jsonl"],
        started=time.time(),
        command=list(COMMAND),
        inputs=identities(request),
        seed=42,
        request=request.record(),
        replay={"rows": 3},
    )
    estimate()
    return tmp_path


def estimate() -> None:
    out = Path("outputs/fisher")
    out.mkdir(parents=True)
    (out / "fisher.safetensors").write_bytes(b"F")
    digests = {"base": digest_model("base"), "data": digest_file(Path("outputs/replay-text/replay.jsonl"))}
    write_manifest(
        out,
        what="fisher",
        outputs=["fisher.safetensors"],
        started=time.time(),
        command=list(FISHER.command),
        name="fisher.untax.json",
        inputs={**digests, "token_ids": "0123"},
    )


def edit(path: str, **changes: Any) -> None:
    Path(path).write_text(yaml.safe_dump({**yaml.safe_load(Path(path).read_text()), **changes}))


def test_both_are_finished_from_wherever_they_are_asked(run: Path, monkeypatch: pytest.MonkeyPatch):
    assert unfinished(REPLAY, run, None) is None
    assert unfinished(FISHER, run, None) is None
    monkeypatch.chdir("/")
    assert unfinished(REPLAY, run, None) is None
    assert unfinished(FISHER, run, None) is None


def test_a_replay_text_is_made_again_when_what_it_is_of_changes(run: Path):
    def reason() -> str | None:
        return unfinished(REPLAY, run, None)

    write_jsonl(Path("sft.jsonl"), sft_rows(4))
    assert reason() == "outputs/replay-text: datasets/sft.jsonl was changed"
    write_jsonl(Path("sft.jsonl"), sft_rows(3))
    assert reason() is None
    Path("c4.txt").write_text("Other.")
    assert reason() == "outputs/replay-text: texts/c4.txt was changed"
    Path("c4.txt").write_text("One.\n\nTwo.\n\nThree.")
    (Path("base") / "tokenizer_config.json").write_text("{}")
    assert reason() == "outputs/replay-text: tokenizer was changed"


@pytest.mark.parametrize(
    ("changes", "matters"),
    [
        ({"learning_rate": 0.2, "output_dir": "elsewhere"}, False),
        ({"sequence_len": 128}, True),
        ({"special_tokens": {"eos_token": "<end>"}}, True),
        ({"disperse_first_turn": True}, True),
        ({"base_model": "other"}, False),  # --base goes first
        ({"datasets": [{"path": "sft.jsonl", "type": "alpaca", "split": "test"}]}, True),
        ({"datasets": [{"path": "sft.jsonl", "type": "alpaca:chat"}]}, False),
    ],
)
def test_of_its_yaml_counts_what_decides_rows(run: Path, changes: dict[str, Any], matters: bool):
    edit("like.yaml", **changes)
    expected = "outputs/replay-text: like.yaml was changed" if matters else None
    assert unfinished(REPLAY, run, None) == expected


def test_another_command_line_makes_it_again(run: Path):
    other = dataclasses.replace(REPLAY, command=(*COMMAND[:-2], "--ratio", "2", *COMMAND[-2:]))
    assert unfinished(other, run, None) == "outputs/replay-text: it was made by another command line"
    forced = dataclasses.replace(REPLAY, command=(*COMMAND, "--force"))
    assert unfinished(forced, run, None) is None


def test_a_statistic_is_estimated_again_when_its_data_or_base_changes(run: Path):
    replayed = Path("outputs/replay-text/replay.jsonl")
    before = replayed.read_text()
    replayed.write_text("other")
    assert unfinished(FISHER, run, None) == f"outputs/fisher: {replayed} was changed"
    replayed.unlink()
    assert unfinished(FISHER, run, None) == f"outputs/fisher: {replayed} was changed"
    replayed.write_text(before)
    assert unfinished(FISHER, run, None) is None
    config = Path("base/config.json")
    config.write_text(config.read_text() + "\n")
    assert unfinished(FISHER, run, None) == "outputs/fisher: base was changed"


def test_what_moved_is_no_reason(run: Path):
    Path("base").rename("model")
    Path("c4.txt").rename("texts.txt")
    words = {"base": "./model", "c4.txt": "texts.txt"}
    moved = [
        dataclasses.replace(node, command=tuple(words.get(word, word) for word in node.command))
        for node in (REPLAY, FISHER)
    ]
    assert [unfinished(node, run, None) for node in moved] == [None, None]
    Path("texts.txt").write_text("Other.")
    assert unfinished(moved[0], run, None) == "outputs/replay-text: it was made by another command line"
    Path("texts.txt").write_text("One.\n\nTwo.\n\nThree.")
    Path("model/config.json").write_text("{}")
    assert unfinished(moved[1], run, None) == "outputs/fisher: it was made by another command line"
    Path("model/tokenizer.json").write_text("{}")
    assert unfinished(moved[0], run, None) == "outputs/replay-text: it was made by another command line"


def test_a_statistic_of_an_adapter_is_estimated_again_when_the_adapter_changes(run: Path):
    from untax.adapters.stored import ADAPTER_FILES
    from untax.manifest import digest_files

    adapter = Path("outputs/sft")
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"A")
    command = ("untax", "gram", "base+./outputs/sft", "--data", "sft.jsonl", "-o", "outputs/gram-sft/gram.safetensors")
    node = Node("gram-sft", "fisher", command, ("outputs/gram-sft",))
    out = Path("outputs/gram-sft")
    out.mkdir()
    (out / "gram.safetensors").write_bytes(b"G")
    inputs = {"base": digest_model("base"), "adapter": digest_files(adapter, ADAPTER_FILES)}
    write_manifest(
        out,
        what="gram",
        outputs=["gram.safetensors"],
        started=time.time(),
        command=list(command),
        name="gram.untax.json",
        inputs={**inputs, "data": digest_file(Path("sft.jsonl"))},
    )
    assert unfinished(node, run, None) is None
    (adapter / "adapter_model.safetensors").write_bytes(b"other")
    assert unfinished(node, run, None) == "outputs/gram-sft: ./outputs/sft was changed"


@pytest.mark.parametrize(("command", "adapter"), [("fisher", False), ("gram", True)])
def test_what_the_commands_write_is_finished(
    run: Path, monkeypatch: pytest.MonkeyPatch, command: str, adapter: bool
) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    from untax.cli.main import main

    config = peft.LoraConfig(r=1, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained("base"), config).save_pretrained("outputs/sft")
    model, file = "./base+./outputs/sft" if adapter else "./base", f"outputs/{command}-sft/{command}.safetensors"
    typed = ("untax", command, model, "--data", "sft.jsonl", "--samples", "2", "--device", "cpu", "-o", file)
    node = Node(f"{command}-sft", "fisher", typed, (f"outputs/{command}-sft",))
    assert unfinished(node, run, None) == f"outputs/{command}-sft: not made yet"
    monkeypatch.setattr("sys.argv", list(typed))
    main()
    assert unfinished(node, run, None) is None
    write_jsonl(Path("sft.jsonl"), sft_rows(4))
    assert unfinished(node, run, None) == f"outputs/{command}-sft: sft.jsonl was changed"
    make_room(node, run)
    assert not Path(f"outputs/{command}-sft").exists()


def test_unfinished_and_damaged_outputs(run: Path):
    Path("outputs/fisher/fisher.safetensors").write_bytes(b"cut")
    assert unfinished(FISHER, run, None) == "outputs/fisher: fisher.safetensors was changed or removed"
    Path("outputs/fisher/fisher.untax.json").unlink()
    assert unfinished(FISHER, run, None) == "outputs/fisher: not made yet"
    Path("outputs/replay-text/untax.json").write_text(json.dumps({"what": "replay", "outputs": {}}))
    assert unfinished(REPLAY, run, None) == "outputs/replay-text: it was made by another command line"


def test_room_is_made_for_both(run: Path):
    for node in (REPLAY, FISHER):
        make_room(node, run)
        assert not (run / node.outputs[0]).exists()
    assert not (run / ".untax/replaced").exists()


def test_what_untax_did_not_make_is_set_aside(run: Path):
    Path("outputs/fisher/notes.txt").write_text("mine")
    Path("outputs/replay-text/untax.json").unlink()
    make_room(FISHER, run)
    make_room(REPLAY, run)
    assert Path(".untax/replaced/fisher-1/notes.txt").read_text() == "mine"
    assert Path(".untax/replaced/replay-text-1/replay.jsonl").is_file()


def test_statistics_are_longer_than_texts_and_shorter_than_trainings():
    train = Node("sft", "train", (), ("outputs/sft",), needs=("fisher",))
    lengths = chain_lengths((REPLAY, FISHER, train))
    assert lengths["replay-text"] > lengths["fisher"] > lengths["sft"]


def test_options_of_command_lines():
    command = ("untax", "replay", "--texts", "a", "--texts=b=c", "--force", "-o", "x")
    assert values(command, "--texts") == ["a", "b=c"]
    assert values(command, "-o") == ["x"]
    assert values(command, "--like") == []
    assert same(["untax", "--debug", "replay", "--texts=a", "--texts", "b=c", "-o", "x"], command)
    assert not same(["untax", "replay", "--texts=b=c", "--texts", "a", "-o", "x"], command)
    assert not same(None, command)


def test_replay_text_is_no_instruction_data(tmp_path: Path):
    like = read_like(like_yaml(), tmp_path, tmp_path / "outputs/replay-text")
    assert isinstance(like, Like)
    assert [entry["path"] for entry in like.entries] == ["sft.jsonl"]
