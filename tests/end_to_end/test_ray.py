"""Real trainings on a Ray cluster of two machines, one of which dies while it trains."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="the extra `ray` is not installed")

from ray_machines import machines, until
from untax.run.events import read_events
from untax.run.ray_task import place_path, read_place

UNTAX = Path(sys.executable).parent / "untax"


@pytest.mark.slow
def test_a_machine_dies_and_the_weights_are_those_of_the_local_engine(finished, tmp_path, digests, make_run_folder):
    folder = make_run_folder(tmp_path / "run", suite=None, arms=("dtm",))
    place, log = place_path(folder, "cluster-0"), folder / ".untax/logs/cluster-0.log"
    with machines() as cluster:
        cluster.add()
        cluster.add()
        command = [UNTAX, "run", folder.name, "--engine", "ray", "--ray-address", cluster.address]
        with subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        ) as runner:
            until(lambda: log.exists() and "Starting trainer" in log.read_text(), "nothing was trained", 240)
            cluster.kill(cluster.machine_of(read_place(place)[1]["pid"]))
            said, _ = runner.communicate(timeout=600)
        assert runner.returncode == 0, said
    attempts = {one["node"]: one["attempts"] for one in read_events(folder) if one["event"] == "node-ended"}
    assert attempts == {"disperse": 1, "cluster-0": 2, "cluster-1": 1, "average": 1, "average-0.5": 1}
    made, undisturbed = digests(folder), digests(finished)
    assert [made[name] for name in ("average", "average-0.5")] == [undisturbed[name] for name in ("dtm", "dtm-0.5")]
