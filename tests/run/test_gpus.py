"""Which GPUs the commands of nodes see, with real quick commands and no GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from untax.errors import UntaxError
from untax.run.process import environment

SEEN = """
import os, subprocess, sys, time
from pathlib import Path
name = {!r}
Path("begun-" + name).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "unset"))
end = time.time() + 20
while not all(Path("begun-" + other).exists() for other in {!r}):
    assert time.time() < end, "the others never ran beside this one"
    time.sleep(0.02)
Path("running-" + name).touch()
time.sleep({!r})
Path("beside-" + name).write_text(" ".join(sorted(p.name for p in Path().glob("running-*"))))
subprocess.check_call([sys.executable, "work.py", name, "0"])
Path("running-" + name).unlink()
"""


@pytest.fixture
def training(make_node):
    """A training, as far as GPUs go, that runs beside others at least for a moment."""

    def make(name: str, gpus: int, *, beside: tuple[str, ...] = (), needs: tuple[str, ...] = (), seconds: float = 0.0):
        node = make_node(name, needs, code=SEEN.format(name, beside, seconds))
        return dataclasses.replace(node, kind="train", gpus=gpus)

    return make


def seen(folder: Path, name: str) -> str:
    return (folder / f"begun-{name}").read_text()


def test_two_at_once_share_the_gpus_and_see_them_in_ascending_order(tmp_path, training, run_nodes):
    run_nodes(
        [training("a", 4, beside=("b",)), training("b", 2, beside=("a",))], jobs=8, gpus=["5", "0", "3", "1", "7", "2"]
    )
    assert seen(tmp_path, "a") == "0,1,2,3"
    assert seen(tmp_path, "b") == "5,7"


def test_a_training_on_all_gpus_runs_alone(tmp_path, training, run_nodes):
    nodes = [training("all", 2, seconds=0.3), training("one", 1, seconds=0.3), training("two", 1, seconds=0.3)]
    run_nodes(nodes, jobs=8, gpus=["0", "1"])
    assert seen(tmp_path, "all") == "0,1"
    assert (tmp_path / "beside-all").read_text() == "running-all"


def test_one_that_waits_for_many_is_not_passed_by_those_that_take_one(tmp_path, training, run_nodes):
    """The first takes a GPU; the chain on both is the longest that waits, so the single ones stand behind it."""
    first = training("first", 1, seconds=0.5)
    many = training("many", 2)
    ends = training("end", 1, needs=("many",))
    singles = [training(f"single-{index}", 1) for index in range(3)]
    nodes = [dataclasses.replace(first, share=3.0), many, ends, *singles]
    run_nodes(nodes, jobs=8, gpus=["0", "1"])
    begun = sorted(("first", "many", "single-0", "single-1", "single-2"), key=lambda name: stamp(tmp_path, name))
    assert begun[:2] == ["first", "many"]


def stamp(folder: Path, name: str) -> int:
    return (folder / f"begun-{name}").stat().st_mtime_ns


def test_too_many_gpus_are_refused_before_anything_runs(tmp_path, training, run_nodes, make_node):
    nodes = [make_node("merge"), training("big", 8), training("small", 2)]
    with pytest.raises(UntaxError, match=r"big: 8 GPUs are wanted at once, and 2 \(0, 1\) can be seen"):
        run_nodes(nodes, gpus=["0", "1"])
    assert not (tmp_path / "order.txt").exists()
    with pytest.raises(UntaxError, match="big, small: 8 GPUs are wanted at once, and none can be seen"):
        run_nodes(nodes)


def test_on_a_cpu_gpus_play_no_part(tmp_path, training, run_nodes):
    run_nodes([training("big", 8)], cpu_only=True)
    assert seen(tmp_path, "big") == ""


def test_trainings_on_several_gpus_have_ports_of_their_own(monkeypatch):
    monkeypatch.delenv("PET_MASTER_PORT", raising=False)
    ports = [environment(1, gpus).get("PET_MASTER_PORT") for gpus in (("0", "1"), ("2", "3"), ("4",), ())]
    assert ports[0] != ports[1]
    assert ports[2:] == [None, None]
    assert environment(1, ("2", "3"))["CUDA_VISIBLE_DEVICES"] == "2,3"
    monkeypatch.setenv("PET_MASTER_PORT", "1234")
    assert environment(1, ("0", "1"))["PET_MASTER_PORT"] == "1234"
