"""The Ray engine on a real cluster of two machines, which are processes here, one of which dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray", reason="the extra `ray` is not installed")

from ray_machines import Machines, gone, machines, until
from untax.errors import UntaxError
from untax.recipes.graph import Node
from untax.run import ray_cluster
from untax.run.local import LocalWorkers
from untax.run.ray_task import place_path, read_place
from untax.run.ray_workers import RayWorkers
from untax.run.resources import Resources
from untax.run.workers import Ended, Usage, Workers

ONE = Resources(jobs=2, threads=1, cpu_only=True)
GRANDCHILD = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("grandchild.part").write_text(str(child.pid))
pathlib.Path("grandchild.part").rename("grandchild")
child.wait()
"""
# Slow until a file is there, then as quick as any.
SLOW_AT_FIRST = """
import pathlib, subprocess, sys, time
if not pathlib.Path("again").exists():
    pathlib.Path("again").touch()
    {slow}
subprocess.check_call([sys.executable, "work.py", "{name}", "0"])
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines() as made:
        made.add()
        made.add()
        yield made


@pytest.fixture
def ray_workers_of(cluster: Machines, tmp_path: Path) -> Iterator[Callable[..., RayWorkers]]:
    """RayWorkers on the cluster of two machines with one CPU each."""
    while len(cluster.cluster.worker_nodes) < 2:
        cluster.add()
    made: list[RayWorkers] = []

    def connected(resources: Resources = ONE, **options: object) -> RayWorkers:
        made.append(RayWorkers(tmp_path, resources, cluster.address, **options))  # type: ignore[arg-type]
        return made[-1]

    yield connected
    for workers in made:
        workers.stop(workers._running)
        workers.close()


def drive(workers: Workers, nodes: Sequence[Node]) -> dict[str, Ended]:
    """Run a graph, as the engine does but for all that it says and judges."""
    ended: dict[str, Ended] = {}
    waiting, running = list(nodes), []
    deadline = time.monotonic() + 120
    while waiting or running:
        assert time.monotonic() < deadline, f"waiting for {[one.node.name for one in running]}"
        for node in [node for node in waiting if set(node.needs) <= set(ended)]:
            if (started := workers.start(node)) is not None:
                running.append(started)
                waiting.remove(node)
        for one in list(running):
            if (end := one.poll()) is not None:
                ended[one.node.name] = end
                running.remove(one)
        time.sleep(0.05)
    return ended


def worker_pid(folder: Path, node: Node, attempt: int = 1) -> int:
    """The worker that is at work on a node."""
    lines = until(
        lambda: len(found := read_place(place_path(folder, node.name))) > attempt and found, f"{node.name} never began"
    )
    return int(lines[attempt]["pid"])


def weights(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob("outputs/*/*.safetensors")}


def grandchild(folder: Path) -> int:
    until((folder / "grandchild").exists, "the command never started")
    return int((folder / "grandchild").read_text())


def test_a_machine_that_dies_costs_its_nodes_one_more_attempt(cluster, ray_workers_of, tmp_path, make_node):
    slow = SLOW_AT_FIRST.format(name="a", slow="time.sleep(600)")
    nodes = [make_node("a", code=slow), make_node("b"), make_node("c", ["a", "b"])]
    workers = ray_workers_of()
    workers.check(nodes)
    lost = workers.start(nodes[0])
    machine = cluster.machine_of(worker_pid(tmp_path, nodes[0]))
    until((tmp_path / "again").exists, "a never started")
    cluster.kill(machine)
    end = until(lost.poll, "a never ended")
    assert lost.attempts == 2
    ended = {"a": end, **drive(workers, [nodes[1], replace(nodes[2], needs=("b",))])}
    assert {name: (one.code, one.attempts, one.problem) for name, one in ended.items()} == {
        "a": (0, 2, None),
        "b": (0, 1, None),
        "c": (0, 1, None),
    }
    on_ray = weights(tmp_path)
    for file in tmp_path.glob("outputs/*/*"):
        file.unlink()
    drive(LocalWorkers(tmp_path, ONE), nodes)
    assert on_ray == weights(tmp_path) != {}


def test_a_killed_worker_takes_its_command_along_and_is_replaced(ray_workers_of, tmp_path, make_node):
    node = make_node("a", code=SLOW_AT_FIRST.format(name="a", slow=GRANDCHILD.strip().replace("\n", "\n    ")))
    running = ray_workers_of().start(node)
    pid = grandchild(tmp_path)
    os.kill(worker_pid(tmp_path, node), signal.SIGKILL)
    ended = until(running.poll, "a never ended")
    assert (ended.code, ended.attempts) == (0, 2)
    until(lambda: gone(pid), "the killed worker's command goes on")


def test_a_command_that_fails_is_not_tried_again(ray_workers_of, tmp_path, make_node):
    code = "open('ran', 'a').write('x'); print('the reason'); raise SystemExit(3)"
    ended = drive(ray_workers_of(), [make_node("a", code=code)])["a"]
    assert (ended.code, ended.attempts, ended.problem) == (3, 1, None)
    assert (tmp_path / "ran").read_text() == "x"
    assert "the reason" in (tmp_path / ".untax/logs/a.log").read_text()
    assert 0 < ended.usage.wall_seconds < 60
    assert ended.usage.peak_memory > 2**20


def test_stopping_ends_what_works_and_what_waits(ray_workers_of, tmp_path, make_node):
    workers = ray_workers_of()
    first = workers.start(make_node("a", code=GRANDCHILD))
    pid = grandchild(tmp_path)
    more = [workers.start(make_node(name, code="import time; time.sleep(600)")) for name in ("b", "c", "d")]
    workers.stop([first, *more])
    assert gone(pid)
    assert all(one.poll() is not None for one in (first, *more))
    assert drive(workers, [make_node("e")])["e"].code == 0


def test_at_most_so_many_nodes_at_a_time(ray_workers_of, make_node):
    workers = ray_workers_of(jobs=1)
    assert workers.start(make_node("a", code="import time; time.sleep(600)")) is not None
    assert workers.start(make_node("b")) is None


def test_a_node_for_which_no_machine_is_large_enough(ray_workers_of, make_node):
    training = replace(make_node("a"), kind="train", gpus=2)
    with pytest.raises(UntaxError, match=r"a 3 CPUs, 0 GPUs\. The machines have: .*1 CPUs, 0 GPUs"):
        ray_workers_of(replace(ONE, threads=3)).check([training])


def test_a_machine_that_joins_late_is_waited_for_if_one_says_so(cluster, ray_workers_of, make_node):
    training = replace(make_node("a"), kind="train", gpus=3)
    workers = ray_workers_of(replace(ONE, cpu_only=False), wait=90)
    ray = Path(sys.executable).parent / "ray"
    options = ["--address", cluster.address, "--num-cpus=1", "--num-gpus=3", f"--object-store-memory={80 * 2**20}"]
    with subprocess.Popen([ray, "start", "--block", *options], stdout=subprocess.DEVNULL) as machine:
        workers.check([training])
        machine.terminate()
    until(lambda: not any(one["GPU"] for one in ray_cluster.machines()), "the machine is still there")


def test_gpus_are_given_by_ray(cluster, ray_workers_of, tmp_path, make_node):
    """GPUs that only Ray believes in: enough to see who gets which."""
    machine = cluster.add(num_cpus=2, num_gpus=2)
    look = (
        "import os, pathlib, sys, time\n"
        "pathlib.Path('gpus-{0}').write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "end = time.time() + 60\n"
        "while not pathlib.Path('gpus-{1}').exists():\n"
        "    assert time.time() < end\n"
        "    time.sleep(0.05)\n"
    )
    try:
        workers = ray_workers_of(replace(ONE, cpu_only=False))
        nodes = [
            replace(make_node("a", code=look.format("a", "b")), kind="train"),
            replace(make_node("b", code=look.format("b", "a")), kind="train"),
            replace(make_node("both", code=look.format("both", "both")), kind="train", gpus=2),
            make_node("merge", code=look.format("merge", "merge")),
        ]
        workers.check(nodes)
        ended = drive(workers, nodes)
    finally:
        cluster.cluster.remove_node(machine)
    assert {name: one.code for name, one in ended.items()} == dict.fromkeys(("a", "b", "both", "merge"), 0)
    seen = {name: (tmp_path / f"gpus-{name}").read_text() for name in ended}
    assert {seen["a"], seen["b"]} == {"0", "1"}
    assert sorted(seen["both"].split(",")) == ["0", "1"]
    assert seen["merge"] == ""
    assert ended["both"].usage.gpu_seconds == pytest.approx(2 * ended["both"].usage.wall_seconds, abs=0.01)


def test_the_environment_of_a_command(ray_workers_of, tmp_path, make_node, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("NOT_FOR_WORKERS", "1")
    code = "import json, os; json.dump([dict(os.environ), os.getcwd()], open('environment.json', 'w'))"
    drive(ray_workers_of(), [make_node("a", code=code)])
    variables, folder = json.loads((tmp_path / "environment.json").read_text())
    assert folder == str(tmp_path)
    assert variables["OMP_NUM_THREADS"] == "1"
    assert variables["PYTHONHASHSEED"] == "0"
    assert variables["CUDA_VISIBLE_DEVICES"] == ""
    assert variables["AXOLOTL_DO_NOT_TRACK"] == "1"
    assert variables["HF_HOME"] == str(tmp_path / "hub")
    assert variables["UNTAX_PROGRESS"] == str(tmp_path / ".untax/progress/a.json")
    assert variables["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    assert "NOT_FOR_WORKERS" not in variables
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_training_that_is_still_alive_elsewhere_is_waited_for(ray_workers_of, tmp_path, make_node):
    node = replace(make_node("a", code="open('began', 'w').close()"), kind="train")
    holder = (
        "import fcntl, time; from pathlib import Path; from untax.training.started import LOCK_NAME\n"
        "place = Path('outputs/a', LOCK_NAME); place.parent.mkdir(parents=True); file = place.open('w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX); print('holds', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", holder], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        running = ray_workers_of().start(node)
        worker_pid(tmp_path, node)
        time.sleep(2)
        assert not (tmp_path / "began").exists()
        process.kill()
    assert until(running.poll, "a never ended").code == 0


RUNNER = """
import sys
from pathlib import Path
from untax.recipes.graph import Node
from untax.run.ray_workers import RayWorkers
from untax.run.resources import Resources
node = Node("a", "merge", (sys.executable, "-c", Path("command.py").read_text()), ("outputs/a",))
workers = RayWorkers(Path("."), Resources(jobs=1, threads=1, cpu_only=True), sys.argv[1])
running = workers.start(node)
try:
    while running.poll() is None:
        pass
finally:
    workers.stop([running])
    workers.close()
"""


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Callable[[str], tuple[subprocess.Popen[bytes], int]]]:
    """A runner of its own, and the process that its command started."""
    (tmp_path / "command.py").write_text(GRANDCHILD)
    started: list[subprocess.Popen[bytes]] = []

    def start(address: str) -> tuple[subprocess.Popen[bytes], int]:
        started.append(subprocess.Popen([sys.executable, "-c", RUNNER, address], cwd=tmp_path))
        return started[-1], grandchild(tmp_path)

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_killed_runner_takes_its_commands_along(cluster, ray_workers_of, tmp_path, make_node, runner):
    process, pid = runner(cluster.address)
    process.kill()
    until(lambda: gone(pid), "the command outlived its runner")
    assert drive(ray_workers_of(), [make_node("a")])["a"].code == 0


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_cluster_that_was_started_for_a_run_ends_with_it(tmp_path, runner, end):
    process, pid = runner("local")
    below = psutil.Process(process.pid).children(recursive=True)
    ray = [one.pid for one in below if one.name() in ("raylet", "gcs_server")]
    assert len(ray) == 2
    process.send_signal(end)
    process.wait()
    if end == signal.SIGINT:
        assert gone(pid)
    until(lambda: gone(pid), "the command outlived its runner")
    until(lambda: all(map(gone, ray)), "Ray outlived its runner")


def test_what_a_worker_refuses_is_said_by_the_driver(ray_workers_of, tmp_path, make_node):
    node = replace(make_node("a"), command=("no-such-command",))
    ended = drive(ray_workers_of(), [node])["a"]
    assert ended.code == 2
    assert "The command 'no-such-command' of node a is not installed" in str(ended.problem)


def test_files_that_are_not_here_yet_are_waited_for(ray_workers_of, tmp_path, make_node, monkeypatch):
    node = make_node("a")
    workers = ray_workers_of()
    running = workers.start(node)
    ended = Ended(0, Usage(1.0))
    monkeypatch.setattr("ray.get", lambda ref: (ended, ["outputs/a/late.txt"]))
    until((tmp_path / "outputs/a/untax.json").exists, "a never ended")
    time.sleep(1)
    assert running.poll() is None
    (tmp_path / "outputs/a/late.txt").touch()
    assert running.poll() == ended
