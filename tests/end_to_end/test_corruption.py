"""Artifacts that were cut, changed or removed: named before anything runs, and made again to the same bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from untax.cli.main import cli

from .fault_folder import TRAININGS, as_undisturbed, completes, copy, events, manifest, untax_run

Change = Callable[[Path], object]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip(file: Path) -> None:
    """One bit of the last tensor."""
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def other_types(file: Path) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), "outputs": ["model.safetensors"], "config": 3}))


def of_bytes(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00{")


def clusters(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.glob("outputs/disperse/clusters/*.parquet"))


CHANGES: list[tuple[str, Change, str]] = [
    ("outputs/sft/adapter_model.safetensors", cut, "sft"),
    ("outputs/cluster-0/adapter_model.safetensors", flip, "cluster-0"),
    ("outputs/cluster-1/adapter_config.json", cut, "cluster-1"),
    ("outputs/vanilla/model.safetensors", cut, "vanilla"),
    ("outputs/average/model.safetensors", flip, "average"),
    ("outputs/average/config.json", Path.unlink, "average"),
    ("outputs/disperse/assignment.parquet", cut, "disperse"),
    ("outputs/sft/untax.json", cut, "sft"),
    ("outputs/cluster-0/untax.json", empty, "cluster-0"),
    ("outputs/vanilla/untax.json", other_types, "vanilla"),
    ("outputs/cluster-1/untax.json", of_bytes, "cluster-1"),
    ("outputs/disperse/untax.json", Path.unlink, "disperse"),
]


def plan_of(folder: Path) -> str:
    """What ``untax run --dry-run`` says."""
    done = CliRunner().invoke(cli, ["run", str(folder), "--dry-run"], standalone_mode=False)
    assert done.exception is None, done.exception
    return done.output


def nothing_to_do(folder: Path) -> bool:
    return re.search(r"^0 of \d+ nodes would run\.$", plan_of(folder), re.MULTILINE) is not None


def line_of(node: str, plan: str) -> str:
    """The line of a node that would run."""
    found = re.findall(rf"^{node}: .*$", plan, re.MULTILINE)
    assert len(found) == 1, plan
    return str(found[0])


def test_every_corruption_is_noticed_and_named(undisturbed: Path, tmp_path: Path):
    folder = copy(undisturbed, tmp_path / "run")
    assert nothing_to_do(folder)
    for name, change, node in [*CHANGES, *((cluster, Path.unlink, "disperse") for cluster in clusters(folder))]:
        file = folder / name
        content = file.read_bytes()
        change(file)
        said = line_of(node, plan_of(folder))
        assert f"outputs/{node}: " in said, name
        if file.name == "untax.json":
            assert "manifest" in said or "not made yet" in said, said
        else:
            assert f"{file.relative_to(folder / 'outputs' / node)} was changed or removed" in said, said
        file.write_bytes(content)
        assert nothing_to_do(folder), "put back, it is what it was"


def test_merges_are_made_again(undisturbed: Path, tmp_path: Path):
    folder = copy(undisturbed, tmp_path / "run")
    cut(folder / "outputs/vanilla/model.safetensors")
    other_types(folder / "outputs/average/untax.json")
    assert completes(folder, undisturbed).count("finished before") == 4


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 1, 2])
def test_all_is_made_again(first: int, undisturbed: Path, tmp_path: Path):
    """Every third corruption at once."""
    folder = copy(undisturbed, tmp_path / "run")
    struck = CHANGES[first::3]
    for name, change, _ in struck:
        change(folder / name)
    if first == 0:
        (folder / clusters(folder)[0]).unlink()
    untax_run(folder)
    as_undisturbed(folder, undisturbed)
    run = events(folder)[-1]["run"]
    made = {event["node"] for event in events(folder) if event["run"] == run and event["event"] == "node-ended"}
    assert made >= {node for _, _, node in struck}
    assert {name for name in TRAININGS if (folder / ".untax/replaced" / f"{name}-1").exists()} == made & set(TRAININGS)


@pytest.mark.slow
def test_scores_that_were_cut_are_made_again(finished: Path, tmp_path: Path):
    folder = copy(finished, tmp_path / "run")
    results = {name: (folder / f"results/{name}").read_bytes() for name in ("dtm/demo.json", "arms.json")}
    for place, change in (("dtm/demo.json", cut), ("vanilla/demo.samples.jsonl", cut), ("base/demo.untax.json", empty)):
        change(folder / "results" / place)
    plan = plan_of(folder)
    for node in ("score-dtm", "score-vanilla", "score-base"):
        assert "results/" in line_of(node, plan)
    (folder / "results/arms.json").unlink()
    untax_run(folder)
    assert nothing_to_do(folder)
    assert {name: (folder / f"results/{name}").read_bytes() for name in results}["arms.json"] == results["arms.json"]


def test_a_record_that_was_cut(undisturbed: Path, tmp_path: Path):
    folder = copy(undisturbed, tmp_path / "run", without=["vanilla"])
    record = folder / "events.jsonl"
    whole = record.read_bytes()
    record.write_bytes(whole[:-40] + b"\xff\x00{")
    completes(folder, undisturbed)
    assert len(events(folder)) > len(whole.splitlines()) - 1, "what came later is not swallowed by what was cut"
    assert manifest(folder, "vanilla")["what"] == "model"
    state = CliRunner().invoke(cli, ["status", str(folder)], standalone_mode=False)
    assert state.exception is None
    assert "6 nodes: 6 done" in state.output
