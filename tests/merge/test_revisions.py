"""Models of the hub: what a merge says it was made from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from untax.errors import UntaxError
from untax.manifest import read_manifest

from .tiny_models import Config, relative_error, untax_merge, weights

COMMITS = {"main": "a" * 40, "dev": "b" * 40}


@pytest.fixture
def hub(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two revisions of one adapter and of its base, which the adapter's manifest calls by its commit."""
    import huggingface_hub.constants

    root = tmp_path / "hub"
    for repository, folders in (("base", ("base", "base")), ("lora", ("a0", "a1"))):
        place = root / f"models--org--{repository}"
        (place / "refs").mkdir(parents=True)
        for (revision, commit), folder in zip(COMMITS.items(), folders, strict=True):
            shutil.copytree(models / folder, place / "snapshots" / commit)
            (place / "refs" / revision).write_text(commit)
    for folder in root.glob("models--org--lora/snapshots/*"):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "org/base"}))
        manifest = {"what": "adapter", "outputs": {}, "inputs": {"base": f"hub:org/base@{COMMITS['dev']}"}}
        (folder / "untax.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))
    return root


def two(config: Config, base: str) -> Path:
    listed = [{"model": f"{base}+{lora}", "parameters": {"weight": 1.0}} for lora in ("org/lora", "org/lora@dev")]
    return config(merge_method="linear", models=listed, dtype="float32")


def test_each_revision_has_its_own_digest(hub: Path, config: Config, tmp_path: Path) -> None:
    untax_merge(two(config, "org/base@dev"), tmp_path / "out")
    inputs = (read_manifest(tmp_path / "out") or {})["inputs"]
    assert inputs["org/base@dev"] == f"hub:org/base@{COMMITS['dev']}"
    assert set(inputs) == {"org/base@dev", "org/lora", "org/lora@dev"}
    assert inputs["org/lora"] != inputs["org/lora@dev"]


def test_a_branch_that_moved_is_another_merge(hub: Path, config: Config, tmp_path: Path) -> None:
    path = two(config, "org/base@dev")
    untax_merge(path, tmp_path / "out", "--allow-crimes")
    snapshots = hub / "models--org--base/snapshots"
    shutil.copytree(snapshots / COMMITS["dev"], snapshots / ("c" * 40))
    (hub / "models--org--base/refs/dev").write_text("c" * 40)
    with pytest.raises(UntaxError, match="another merge, with other inputs"):
        untax_merge(path, tmp_path / "out", "--allow-crimes")


def test_the_base_of_another_revision_is_another_base(hub: Path, config: Config, tmp_path: Path) -> None:
    with pytest.raises(UntaxError, match="another base"):
        untax_merge(two(config, "org/base"), tmp_path / "out")


def test_mergekit_takes_what_is_in_the_cache(hub: Path, config: Config, tmp_path: Path) -> None:
    """It asks the hub itself, which nobody reaches here."""
    models = [{"model": "org/base@dev+org/lora@dev", "parameters": {"weight": 1.0}}]
    path = config(merge_method="linear", models=models, dtype="float32")
    for engine in ("stream", "mergekit"):
        untax_merge(path, tmp_path / engine, "--allow-crimes", engine=engine)
    base = weights(hub / f"models--org--base/snapshots/{COMMITS['dev']}")
    assert relative_error(weights(tmp_path / "mergekit"), weights(tmp_path / "stream"), base) < 1e-6
