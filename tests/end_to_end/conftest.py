"""Two small run folders of the same recipe: one run through with scores, one killed on its way and continued."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from untax.demo.demo import BUNDLE, demo_spec
from untax.recipes.spec import RunSpec, check_spec
from untax.recipes.write import write_run_folder

from .fault_folder import make_fault_folder, untax_run

UNTAX = Path(sys.executable).parent / "untax"


ARMS: dict[str, Any] = {
    "vanilla": {"scales": [1.0]},
    "dtm": {"clusters": 2, "scales": [1.0, 0.5]},
    "paft": {"delta_l1": 0.001, "merge": ["ties"]},
}


def small_spec(*, suite: str | None, arms: Iterable[str]) -> RunSpec:
    """Every kind of node, on a few rows: vanilla, two clusters, sparse SFT, DPO, merges and scores."""
    content: dict[str, Any] = demo_spec().model_dump(exclude_none=True)
    chosen = {name: ARMS[name] for name in arms}
    return check_spec({**content, "arms": chosen, "suite": suite}, where="the small recipe")


def _make_run_folder(folder: Path, *, suite: str | None, arms: Iterable[str] = tuple(ARMS)) -> Path:
    write_run_folder(small_spec(suite=suite, arms=arms), folder)
    shutil.copytree(BUNDLE / "base", folder / "base")
    (folder / "data").mkdir()
    for name, count in (("sft", 64), ("preference", 24)):
        lines = (BUNDLE / "data" / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (folder / "data" / f"{name}.jsonl").write_text("".join(lines[:count]))
    return folder


def _untax(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [UNTAX, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, stdin=subprocess.DEVNULL)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def make_run_folder() -> Callable[..., Path]:
    return _make_run_folder


@pytest.fixture(scope="session")
def untax() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``untax`` with arguments, in a process of its own."""
    return _untax


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that ran through undisturbed."""
    folder = _make_run_folder(tmp_path_factory.mktemp("finished") / "run", suite="demo")
    _untax("run", folder)
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the tests of faults, run through without any."""
    folder = make_fault_folder(tmp_path_factory.mktemp("undisturbed") / "run")
    untax_run(folder)
    return folder


@pytest.fixture
def digests() -> Callable[[Path], dict[str, str]]:
    """{model: digest of its weights} of the merges in a run folder."""

    def read(folder: Path) -> dict[str, str]:
        manifests = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("outputs/*/untax.json")}
        return {
            name: manifest["outputs"]["model.safetensors"]
            for name, manifest in manifests.items()
            if manifest["what"] == "model"
        }

    return read
