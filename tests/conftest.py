"""Shared fixtures: the bundled 260k-parameter model, tiny data sets, and real Axolotl trainings in this process."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

# Before anything imports Axolotl or datasets.
os.environ.update(AXOLOTL_DO_NOT_TRACK="1", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", AXOLOTL_TEE_STDOUT="0")
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="untax-tests-datasets-")

sys.path.insert(0, str(Path(__file__).parent))

from toys import BASE, Workspace, fresh_axolotl, preference_rows, sft_rows, write_jsonl

# Time says nothing of a property, and a busy machine is slow.
hypothesis.settings.register_profile(
    "untax", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], derandomize=True
)
hypothesis.settings.load_profile("untax")

# A shell starts background jobs with Ctrl-C ignored, and processes inherit that; the tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes, a file stays in one of them, and so do all files that look at the same finished run."""
    for item in items:
        shared = [run for run in ("finished", "undisturbed") if run in getattr(item, "fixturenames", ())]
        item.add_marker(pytest.mark.xdist_group(shared[0] if shared else Path(item.fspath).as_posix()))


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture
def base_model() -> Path:
    return BASE


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    write_jsonl(tmp_path / "sft.jsonl", sft_rows(24))
    write_jsonl(tmp_path / "preference.jsonl", preference_rows(16))
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path)


@pytest.fixture
def axolotl_train(workspace: Workspace) -> Callable[[Path], None]:
    """``axolotl train CONFIG --launcher python``, without the 20 seconds of starting it."""

    def train(config: Path) -> None:
        from axolotl.cli.train import do_cli

        with fresh_axolotl():
            do_cli(config=str(config))

    return train


@pytest.fixture
def axolotl_preprocess(workspace: Workspace) -> Callable[[Path], None]:
    def preprocess(config: Path) -> None:
        from axolotl.cli.preprocess import do_cli

        with fresh_axolotl():
            do_cli(config=str(config))

    return preprocess
