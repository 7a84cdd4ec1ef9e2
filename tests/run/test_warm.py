"""Warm processes: what is forked from them is what the typed command would be, and nothing outlives its parent."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from toys import Workspace, sft_rows, write_jsonl
from untax.manifest import digest_file
from untax.recipes.graph import Node
from untax.run.process import LocalRunning, environment, start, stop
from untax.run.warm import WarmChild, WarmPool, family_of
from untax.run.warm_server import Family, preload

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends orphans")
TRAINED = ("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "tokenizer_config.json")


# Once: pytest names the present test in a variable.
VARIABLES = environment(1, (), cpu_only=True)


def variables(**more: str) -> dict[str, str]:
    return {**VARIABLES, **more}


def node(*command: str) -> Node:
    return Node("node", "merge", command, ("out",))


def merge(config: str) -> Node:
    return node("untax", "merge", config, "out")


def ready(pool: WarmPool, one: Node, times: int = 99) -> WarmPool:
    """A pool whose warm process for the node has imported all."""
    pool.expect([one] * times)
    wait_for(lambda: not pool.serves(one) or pool.ready(one), seconds=300)
    assert pool.serves(one)
    return pool


def wait_for(true: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def forked(pool: WarmPool, one: Node, log: Path, **more: str) -> WarmChild:
    child = pool.start(one, log=log, variables=variables(**more))
    assert child is not None
    return child


def code(child: WarmChild) -> int:
    wait_for(child.ended, seconds=300)
    end = child.ended()
    assert end is not None
    assert end[2] is None
    return end[0]


def is_gone(pid: int) -> bool:
    """Whether a process has ended; its parent may still have to take note."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    return True


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmPool]:
    pool = WarmPool(tmp_path_factory.mktemp("merging"), variables())
    yield ready(pool, merge("none.yaml"))
    pool.close()


@pytest.fixture
def blocked(merging: WarmPool, tmp_path: Path) -> Iterator[Callable[..., WarmChild]]:
    """Merges that wait in the middle for their configuration, which is a pipe, until they are ended."""
    children = []

    def begin(name: str = "a", pool: WarmPool = merging) -> WarmChild:
        os.mkfifo(tmp_path / f"{name}.yaml")
        children.append(forked(pool, merge(str(tmp_path / f"{name}.yaml")), tmp_path / f"{name}.log"))
        return children[-1]

    yield begin
    for child in children:
        if child.end is None:
            os.killpg(child.pid, signal.SIGKILL)


def test_a_training_gives_the_bytes_and_the_manifest_of_the_typed_command(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "sft.jsonl", sft_rows(24))
    workspace = Workspace(tmp_path)
    changes = {"plugins": ["untax.DispersePlugin", "untax.DeltaPenaltyPlugin"], "disperse_clusters": 2}
    changes |= {"disperse_cluster": 0, "delta_l1": 1e-4, "lora_dropout": 0.1}
    workspace.config("train.yaml", **changes)
    train = node("axolotl", "train", "train.yaml", "--launcher", "python")

    typed = start(train, tmp_path, variables=variables())
    wait_for(typed.poll, seconds=300)
    assert typed.poll().code == 0, typed.log.read_text()
    expected = workspace.manifest(), {name: digest_file(tmp_path / "out" / name) for name in TRAINED}
    for made in ("out", "prepared"):
        (tmp_path / made).rename(tmp_path / f"typed-{made}")

    pool = ready(WarmPool(tmp_path, variables()), train)
    running = LocalRunning(train, forked(pool, train, tmp_path / "warm.log"), tmp_path / "warm.log", ())
    wait_for(running.poll, seconds=300)
    pool.close()
    ended = running.poll()
    assert ended.code == 0, running.log.read_text()
    assert ended.usage.cpu_seconds > 0
    assert ended.usage.peak_memory > 2**20
    found = workspace.manifest(), {name: digest_file(tmp_path / "out" / name) for name in TRAINED}
    for manifest in (found[0], expected[0]):
        assert manifest.pop("started")
        assert manifest.pop("wall_seconds") > 0
    assert found == expected
    assert found[0]["command"] == ["axolotl", "train", "train.yaml", "--launcher", "python"]
    assert "leaked" not in running.log.read_text()


def test_a_failing_command_has_the_exit_code_and_the_words_of_the_typed_one(merging: WarmPool, tmp_path: Path) -> None:
    one = merge("none.yaml")
    (tmp_path / "log").write_text("$ the command\n")
    assert code(forked(merging, one, tmp_path / "log")) == 2
    typed = start(one, merging.folder, variables=variables())
    wait_for(typed.poll)
    assert typed.poll().code == 2
    begun, _, rest = (tmp_path / "log").read_text().partition("\n")
    assert begun == "$ the command"
    assert rest == typed.log.read_text().partition("\n")[2] != ""


def test_variables_of_a_node_reach_it_and_others_are_not_served(merging: WarmPool, tmp_path: Path) -> None:
    one = merge("none.yaml")
    assert code(forked(merging, one, tmp_path / "plain")) == 2
    assert code(forked(merging, one, tmp_path / "debug", UNTAX_DEBUG="1")) == 2
    assert "Traceback" not in (tmp_path / "plain").read_text()
    assert "Traceback" in (tmp_path / "debug").read_text()
    for other in ({"OMP_NUM_THREADS": "2"}, {"CUDA_VISIBLE_DEVICES": "0"}, {"TOKENIZERS_PARALLELISM": "true"}):
        assert merging.start(one, log=tmp_path / "other", variables=variables(**other)) is None
    assert not (tmp_path / "other").exists()


def test_an_environment_too_large_to_send_is_left_to_an_ordinary_start(merging: WarmPool, tmp_path: Path) -> None:
    one, large = merge("none.yaml"), {**merging.variables, "UNTAX_LARGE": "x" * 2_000_000}
    assert merging.start(one, log=tmp_path / "log", variables=large) is None
    assert merging.serves(one), "nothing is wrong with the server"


def test_two_at_once_each_in_a_session_of_its_own(blocked: Callable[..., WarmChild], merging: WarmPool) -> None:
    first, second = blocked("first"), blocked("second")
    for child in (first, second):
        process = Path(f"/proc/{child.pid}")
        assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid
        assert (process / "cwd").readlink() == merging.folder.resolve()
        assert (process / "fd/0").readlink() == Path("/dev/null")
        assert not any("socket:" in str(fd.readlink()) for fd in (process / "fd").iterdir())
        assert child.ended() is None
    os.killpg(second.pid, signal.SIGKILL)
    assert code(second) == -signal.SIGKILL
    assert first.ended() is None


def test_sigterm_ends_a_merge_as_it_ends_a_typed_one(
    blocked: Callable[..., WarmChild], merging: WarmPool, tmp_path: Path
) -> None:
    child = blocked()
    running = LocalRunning(merge("a.yaml"), child, tmp_path / "a.log", ())
    caught = re.compile(r"^SigCgt:\s*([0-9a-f]+)$", re.MULTILINE)
    status = Path(f"/proc/{child.pid}/status")
    wait_for(lambda: int(caught.findall(status.read_text())[0], 16) >> (signal.SIGTERM - 1) & 1)
    stop([running])
    assert running.poll().code == 128 + signal.SIGTERM


def test_a_killed_server_fails_what_it_forked_and_serves_no_more(
    blocked: Callable[..., WarmChild], tmp_path: Path
) -> None:
    one = merge("none.yaml")
    pool = ready(WarmPool(tmp_path, variables()), one)
    child = blocked("b", pool)
    server = pool._servers["untax", "merge"]
    os.kill(server.pid, signal.SIGKILL)
    wait_for(child.ended)
    exit_code, _, problem = child.ended()
    assert exit_code == -signal.SIGKILL
    assert "warm process" in problem
    wait_for(lambda: is_gone(child.pid))
    assert not pool.serves(one)
    assert pool.importing == 0
    assert pool.start(one, log=tmp_path / "log", variables=variables()) is None
    pool.close()


def test_a_server_leaves_with_the_last_of_its_children(tmp_path: Path) -> None:
    one = merge("none.yaml")
    pool = ready(WarmPool(tmp_path, variables()), one, times=2)
    server = pool._servers["untax", "merge"].pid
    assert code(forked(pool, one, tmp_path / "first")) == 2
    assert pool.serves(one)
    assert not is_gone(server)
    assert code(forked(pool, one, tmp_path / "second")) == 2
    assert is_gone(server)
    assert not pool.serves(one)
    pool.close()


RUNNER = """
import sys, time
from pathlib import Path
from untax.recipes.graph import Node
from untax.run.lock import folder_lock
from untax.run.process import environment
from untax.run.warm import WarmPool

node = Node("node", "merge", ("untax", "merge", "pipe.yaml", "out"), ("out",))
with folder_lock(Path("lock")) as lock:
    variables = environment(1, (), cpu_only=True)
    pool = WarmPool(Path("."), variables, pass_fds=[lock.fileno()])
    pool.expect([node, node])
    while not pool.ready(node):
        assert pool.serves(node)
        time.sleep(0.05)
    child = pool.start(node, log=Path("log"), variables=variables)
    print(pool._servers["untax", "merge"].pid, child.pid, flush=True)
    time.sleep(600)
"""


def test_a_killed_runner_takes_server_and_children_along_and_the_lock_is_free(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with subprocess.Popen([sys.executable, "-c", RUNNER], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        server, child = map(int, runner.stdout.readline().split())
        with (tmp_path / "lock").open() as lock:
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            runner.kill()
            runner.wait()
            wait_for(lambda: is_gone(server) and is_gone(child))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_process_with_threads_does_not_fork(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    one = merge("none.yaml")
    pool = WarmPool(tmp_path, variables(PYTHONPATH=str(tmp_path)))
    pool.expect([one, one])
    assert pool.serves(one)
    wait_for(lambda: pool.ready(one) or not pool.serves(one))
    assert not pool.serves(one)
    assert "started threads" in str(pool._servers["untax", "merge"].gone)
    assert pool.start(one, log=tmp_path / "log", variables=pool.variables) is None
    pool.close()


def test_only_families_of_two_and_only_without_gpus(tmp_path: Path) -> None:
    one, other = merge("a.yaml"), node("untax", "eval", "m")
    pool = WarmPool(tmp_path, variables())
    pool.expect([one, other, other])
    assert not pool.serves(one)
    assert pool.serves(other)
    assert not pool.serves(node("untax", "disperse", "a.yaml"))
    for on_gpu in (environment(1, ("0",)), {k: v for k, v in variables().items() if k != "CUDA_VISIBLE_DEVICES"}):
        gpus = WarmPool(tmp_path, on_gpu)
        gpus.expect([other, other])
        assert not gpus.serves(other)
    assert pool.importing == 0


def test_a_wrapper_of_the_same_name_is_not_taken_for_the_script(tmp_path: Path) -> None:
    wrapper = tmp_path / "untax"
    wrapper.write_text("#!/bin/sh\nexec something else\n")
    wrapper.chmod(0o755)
    one = merge("a.yaml")
    pool = WarmPool(tmp_path, variables(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}"))
    pool.expect([one, one])
    assert not pool.serves(one)


def test_axolotl_is_forked_only_where_it_trains_in_its_own_process() -> None:
    assert family_of(node("axolotl", "train", "a.yaml", "--launcher", "python")) == ("axolotl", "train")
    assert family_of(node("axolotl", "train", "a.yaml", "--launcher=python")) == ("axolotl", "train")
    assert family_of(node("axolotl", "train", "a.yaml")) is None
    assert family_of(node("axolotl", "train", "a.yaml", "--launcher", "accelerate")) is None


def test_generators_that_an_import_seeded_at_random_differ_between_forks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "warm_toy.py").write_text("import random\nfree, fixed = random.Random(), random.Random(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    seed = random.Random.seed
    try:
        reseed = preload(Family(("warm_toy", "no_such_module"), {}))
    finally:
        gc.unfreeze()
    assert random.Random.seed is seed
    import warm_toy

    free, fixed = warm_toy.free.getstate(), warm_toy.fixed.getstate()
    for again in reseed:
        again()
    assert warm_toy.free.getstate() != free
    assert warm_toy.fixed.getstate() == fixed == random.Random(3).getstate()
