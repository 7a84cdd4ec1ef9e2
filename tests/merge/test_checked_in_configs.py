"""Every checked-in merge, run by plain mergekit and by untax merge, on tiny models where the YAMLs look for theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from untax.merge.references import read_references

from .tiny_models import make_adapter, make_base, relative_error, untax_merge, weights

REPOSITORY = Path(__file__).resolve().parents[2]
ALL = sorted((REPOSITORY / "mergekit_configs").rglob("*.yaml"))


def one_of_each() -> list[Path]:
    """A configuration of each kind: the others differ from it in the names of models and the dtype only."""
    found: dict[str, Path] = {}
    for path in ALL:
        config = yaml.safe_load(path.read_text())
        names = {name: f"model {number}" for number, name in enumerate(_names(config))}
        kind = {**config, "out_dtype": None, "base_model": names.get(config.get("base_model"))}
        kind["models"] = [{**model, "model": names[model["model"]]} for model in config["models"]]
        found.setdefault(yaml.safe_dump(kind), path)
    return list(found.values())


def _names(config: dict[str, Any]) -> list[str]:
    named = [config.get("base_model"), *(model["model"] for model in config["models"])]
    return list(dict.fromkeys(name for name in named if name is not None))


CONFIGS = one_of_each()


def test_every_method_of_every_preset_is_among_them() -> None:
    def methods(paths: list[Path]) -> set[tuple[str, int]]:
        configs = [yaml.safe_load(path.read_text()) for path in paths]
        return {(config["merge_method"], len(config["models"])) for config in configs}

    assert methods(CONFIGS) == methods(ALL)
    assert len(CONFIGS) < len(ALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every path of every configuration is a model or an adapter."""
    root = tmp_path_factory.mktemp("place")
    seed = 0
    for path in CONFIGS:
        for reference in read_references(yaml.safe_load(path.read_text()), where=path):
            base = root / reference.base.path
            if not base.exists():
                make_base(base, REPOSITORY / "plugin/untax/demo/base", seed=(seed := seed + 1))
            if reference.adapter is not None and not (root / reference.adapter.path).exists():
                make_adapter(base, root / reference.adapter.path, seed=(seed := seed + 1))
    return root


def mergekit_yaml(config: Path, out: Path, cache: Path) -> None:
    from mergekit.io.tasks import LoaderCache
    from mergekit.scripts.run_yaml import main

    LoaderCache().loaders.clear()
    # The card alone asks the hub about the names of the models.
    options = ["--quiet", "--random-seed=3", "--no-write-model-card", f"--lora-merge-cache={cache}"]
    main.main([str(config), str(out), *options], standalone_mode=False)


def exact_dtype(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "dtype": "float32", "out_dtype": "float32"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_unchanged_by_both(path: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    mergekit_yaml(path, tmp_path / "stock", tmp_path / "cache")
    untax_merge(path, tmp_path / "ours")
    stock, ours = weights(tmp_path / "stock"), weights(tmp_path / "ours")
    assert {name: (one.dtype, one.shape) for name, one in stock.items()} == {
        name: (one.dtype, one.shape) for name, one in ours.items()
    }
    assert (tmp_path / "ours/config.json").is_file()
    config = yaml.safe_load(path.read_text())
    if not config["merge_method"].startswith("dare"):  # these draw other masks
        base = weights(place / str(config.get("base_model")).partition("+")[0])
        exact = tmp_path / "exact.yaml"
        exact.write_text(yaml.safe_dump(exact_dtype(config)))
        untax_merge(exact, tmp_path / "fp32")
        wanted = weights(tmp_path / "fp32")
        assert relative_error(ours, wanted, base) <= relative_error(stock, wanted, base) < 0.05
