"""untax merge against mergekit-yaml itself, and the YAML keys that scale a merged delta."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .tiny_models import Config, linear, relative_error, untax_merge, weights

SCALE = 0.3


def inputs(folder: Path, **parameters: Any) -> list[dict[str, Any]]:
    listed = [{"model": f"{folder / 'base'}+{folder / name}"} for name in ("a0", "a1")]
    return [{**entry, "parameters": parameters} for entry in listed] if parameters else listed


def method(folder: Path, name: str) -> dict[str, Any]:
    base = str(folder / "base")
    return {
        "linear": linear(folder),
        "task_arithmetic": {"base_model": base, "models": inputs(folder, weight=0.6)},
        "ties": {"base_model": base, "models": inputs(folder, weight=1.0, density=0.5)},
        "dare_ties": {"base_model": base, "models": inputs(folder, weight=0.6, density=0.5)},
        "dare_linear": {"base_model": base, "models": inputs(folder, weight=0.6, density=0.5)},
        "slerp": {"base_model": inputs(folder)[0]["model"], "models": inputs(folder), "parameters": {"t": 0.4}},
    }[name] | {"merge_method": name, "dtype": "float32"}


def stock(config: Path, out: Path, cache: Path, seed: int) -> None:
    from mergekit.io.tasks import LoaderCache
    from mergekit.scripts.run_yaml import main

    LoaderCache().loaders.clear()
    options = ["--quiet", "--random-seed", str(seed), f"--lora-merge-cache={cache}"]
    main.main([str(config), str(out), *options], standalone_mode=False)


@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "ties", "dare_ties", "slerp"])
def test_identical_to_stock(name: str, models: Path, config: Config, tmp_path: Path) -> None:
    path = config(**method(models, name))
    # With warm copies: while stock makes them, PEFT draws from the generator of the random methods.
    for out in ("cold", "stock"):
        stock(path, tmp_path / out, tmp_path / "cache", seed=7)
    untax_merge(path, tmp_path / "ours", "--random-seed=7", engine="mergekit")
    assert (tmp_path / "ours/model.safetensors").read_bytes() == (tmp_path / "stock/model.safetensors").read_bytes()
    assert (tmp_path / "ours/mergekit_config.yml").read_text() == path.read_text()
    assert (tmp_path / "ours/config.json").read_bytes() == (tmp_path / "stock/config.json").read_bytes()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "ours" / file).read_bytes() == (models / "base" / file).read_bytes()


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare_ties", "dare_linear"])
def test_lambda_scales_the_merged_delta(name: str, models: Path, config: Config, tmp_path: Path) -> None:
    keys = method(models, name)
    untax_merge(config(**keys), tmp_path / "full")
    untax_merge(config(**keys, parameters={"lambda": SCALE}), tmp_path / "scaled")
    base, full = weights(models / "base"), weights(tmp_path / "full")
    wanted = {key: base[key] + SCALE * (full[key] - base[key]) for key in base}
    assert relative_error(weights(tmp_path / "scaled"), wanted, base) < 1e-6
    assert relative_error(full, wanted, base) > 1


def test_linear_is_scaled_by_a_share_of_the_base(models: Path, config: Config, tmp_path: Path) -> None:
    keys = linear(models)
    untax_merge(config(**keys), tmp_path / "full")
    shares = inputs(models, weight=0.5 * SCALE)
    listed = [*shares, {"model": str(models / "base"), "parameters": {"weight": 1 - SCALE}}]
    untax_merge(config(**{**keys, "models": listed}), tmp_path / "scaled")
    base, full = weights(models / "base"), weights(tmp_path / "full")
    wanted = {key: base[key] + SCALE * (full[key] - base[key]) for key in base}
    assert relative_error(weights(tmp_path / "scaled"), wanted, base) < 1e-6


def test_random_methods_repeat_whatever_ran_before(models: Path, config: Config, tmp_path: Path) -> None:
    import torch

    path = config(**method(models, "dare_ties"))
    untax_merge(path, tmp_path / "one")
    torch.rand(3)
    untax_merge(path, tmp_path / "two", f"--lora-merge-cache={tmp_path / 'cache'}")
    untax_merge(path, tmp_path / "three", f"--lora-merge-cache={tmp_path / 'cache'}")
    untax_merge(path, tmp_path / "other", "--random-seed=43")
    first = (tmp_path / "one/model.safetensors").read_bytes()
    assert first == (tmp_path / "two/model.safetensors").read_bytes()
    assert first == (tmp_path / "three/model.safetensors").read_bytes()
    assert first != (tmp_path / "other/model.safetensors").read_bytes()


def test_the_first_model_is_the_donor_when_there_is_no_base_model(models: Path, config: Config) -> None:
    import yaml

    from untax.merge.mergekit_yaml import read_config

    names = [f"{models / 'base'}+{models / name}" for name in ("a1", "a0")] + [str(models / "base")]
    keys = {"merge_method": "linear", "models": [{"model": name, "parameters": {"weight": 1.0}} for name in names]}
    ordered = read_config(yaml.safe_load(config(**keys).read_text()), where="test").referenced_models()
    assert [str(model) for model in ordered] == names


def test_a_relative_folder_is_never_looked_up_on_the_hub(
    models: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models.parent)
    here = models.relative_to(models.parent)
    untax_merge(config(**linear(here)), tmp_path / "out")  # stock raises OfflineModeIsEnabled while it writes the card
    assert "base_model" not in (tmp_path / "out/README.md").read_text().split("---")[1]
    untax_merge(config(**linear(here)), tmp_path / "by-mergekit", engine="mergekit")
