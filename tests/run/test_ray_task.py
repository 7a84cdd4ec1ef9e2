"""What a worker and a driver of the Ray engine refuse before any command runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import untax
from untax.errors import UntaxError
from untax.run import ray_cluster, ray_task
from untax.run.ray_task import place_path, run_node
from untax.run.resources import Resources

ONE = Resources(jobs=2, threads=1, cpu_only=True)


@pytest.fixture
def sent(tmp_path: Path) -> dict[str, object]:
    """A node as a driver sends it, of a folder in which it wrote its nonce."""
    place_path(tmp_path, "a").parent.mkdir(parents=True)
    place_path(tmp_path, "a").write_text('{"nonce": "right"}\n')
    node = {"name": "a", "kind": "merge", "command": ["true"], "outputs": ["outputs/a"]}
    return {"node": node, "folder": str(tmp_path), "nonce": "right", "threads": 1, "variables": {}}


def test_a_worker_with_another_untax(sent):
    with pytest.raises(UntaxError, match=f"untax is {untax.__version__} here and 0.0.1 where"):
        run_node("0.0.1", sent)


@pytest.mark.parametrize("folder", ["elsewhere", "."])
def test_a_folder_that_is_not_shared(sent, tmp_path, monkeypatch, folder):
    monkeypatch.setattr(ray_task, "SHARED_SECONDS", 0.3)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UntaxError, match="not shared with this machine") as caught:
        run_node(untax.__version__, {**sent, "folder": str(tmp_path / folder), "nonce": "other"})
    assert str(tmp_path / folder / ".untax/ray/a.jsonl") in str(caught.value.where)


def test_a_node_whose_workers_die_again_and_again(sent, tmp_path):
    with place_path(tmp_path, "a").open("a") as place:
        for number in range(1, 5):
            place.write(f'{{"attempt": {number}, "host": "node{number}", "pid": 1, "gpus": []}}\n')
    with pytest.raises(UntaxError, match="died 4 times, on node1, node2, node3, node4"):
        run_node(untax.__version__, sent)


def test_no_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UntaxError, match="Ray is not installed"):
        ray_cluster.connect(None, ONE)


@pytest.mark.parametrize(
    ("address", "problem"), [("ray://head:10001", "Ray Client"), ("127.0.0.1:1", "cannot be joined")]
)
def test_no_such_cluster(address, problem):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    with pytest.raises(UntaxError, match=problem):
        ray_cluster.connect(address, ONE)
