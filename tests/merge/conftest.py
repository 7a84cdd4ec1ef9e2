"""A base, two adapters and a writer of mergekit YAMLs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from .tiny_models import Config, make_adapter, make_base


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``base``, ``a0`` and ``a1``; read it, do not write it."""
    root = tmp_path_factory.mktemp("models")
    demo = Path(__file__).resolve().parents[2] / "plugin" / "untax" / "demo" / "base"
    make_base(root / "base", demo)
    for index in range(2):
        make_adapter(root / "base", root / f"a{index}", seed=index)
    return root


@pytest.fixture
def own_models(models: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(models, tmp_path / "models"))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    def write(name: str = "merge.yaml", **keys: Any) -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(keys, sort_keys=False))
        return path

    return write
