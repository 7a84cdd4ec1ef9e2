"""Graphs of quick real commands: each node is a Python process that writes a model folder and its manifest."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from untax.recipes.graph import Node
from untax.run.engine import Engine
from untax.run.events import Events
from untax.run.local import LocalWorkers
from untax.run.lock import folder_lock
from untax.run.resources import Needs, Resources
from untax.run.screen import Screen
from untax.run.workers import STATE

WORK = """
import json, struct, sys, time
from pathlib import Path
from untax.manifest import digest_file, write_manifest
name, seconds = sys.argv[1], float(sys.argv[2])
with Path("order.txt").open("a") as order:
    order.write(name + "\\n")
time.sleep(seconds)
out = Path("outputs", name)
out.mkdir(parents=True, exist_ok=True)
values = Path(f"configs/{name}.yaml").read_bytes()
header = json.dumps({"weight": {"dtype": "U8", "shape": [len(values)], "data_offsets": [0, len(values)]}}).encode()
(out / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + values)
config = f"configs/{name}.yaml"
write_manifest(out, what="model", outputs=["model.safetensors"], started=time.time(),
               config={"path": config, "digest": digest_file(Path(config))}, inputs={}, training={"steps": 1})
"""


@pytest.fixture
def make_node(tmp_path: Path) -> Callable[..., Node]:
    """A merge node that takes some seconds; ``code`` replaces what it does."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "work.py").write_text(WORK)

    def make(name: str, needs: Sequence[str] = (), *, seconds: float = 0.0, code: str | None = None) -> Node:
        (tmp_path / f"configs/{name}.yaml").write_text(f"name: {name}\n")
        arguments = ["-c", code] if code is not None else ["work.py", name, str(seconds)]
        command = (sys.executable, *arguments)
        return Node(name, "merge", command, (f"outputs/{name}",), f"configs/{name}.yaml", tuple(needs))

    return make


@pytest.fixture
def run_nodes(tmp_path: Path) -> Callable[..., str]:
    """Run a graph with the real engine and return what it said."""

    def run(
        nodes: Sequence[Node],
        *,
        jobs: int = 2,
        gpus: Sequence[str] = (),
        cpu_only: bool = False,
        memory: int = 0,
        needs: Needs | None = None,
        **options: bool,
    ) -> str:
        limits = Resources(jobs, 1, tuple(gpus), cpu_only, memory)
        with folder_lock(tmp_path / STATE / "lock") as lock, Screen(nodes, tmp_path) as screen:
            said = screen.console.file = io.StringIO()
            workers = LocalWorkers(tmp_path, limits, needs or Needs(), lock.fileno())
            engine = Engine(nodes, tmp_path, None, workers, screen, Events(tmp_path), **options)
            try:
                engine.run()
            finally:
                assert all(one.poll() is not None for one in engine.running)
        return said.getvalue()

    return run
