"""What is refused before anything is loaded, and where results go."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import untax.demo
from untax.errors import UntaxError
from untax.evaluate.model_folder import check_model, model_name, results_folder

BASE = Path(untax.demo.__file__).parent / "base"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BASE, tmp_path / "run" / "outputs" / "average"))


def refused(model: Path) -> str:
    with pytest.raises(UntaxError) as caught:
        check_model(str(model))
    assert caught.value.where
    assert caught.value.fix
    return str(caught.value)


def test_a_model_passes(model: Path) -> None:
    check_model(str(model))


def test_missing_folder(tmp_path: Path) -> None:
    assert "no model folder" in refused(tmp_path / "none")


def test_no_config(model: Path) -> None:
    (model / "config.json").unlink()
    assert "config.json" in refused(model)


def test_no_safetensors(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "safetensors" in refused(model)


def test_adapter(model: Path) -> None:
    (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    (model / "adapter_config.json").write_text("{}")
    assert "erge it into its base first" in refused(model)


@pytest.mark.parametrize("size", [0, 7, 5000, 900_000])
def test_truncated_weights(model: Path, size: int) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert "model.safetensors" in refused(model)


def test_a_missing_shard(model: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-2.safetensors" in refused(model)
    (model / "model.safetensors.index.json").write_text("{")
    assert "index" in refused(model)


def test_results_go_beside_outputs(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert results_folder(str(model)) == tmp_path / "run" / "results" / "average"
    assert results_folder(str(model), tmp_path / "r") == tmp_path / "r" / "average"
    (model / "merged").mkdir()
    assert results_folder(str(model / "merged")) == tmp_path / "run" / "results" / "average"
    monkeypatch.chdir(model)
    assert results_folder(".") == tmp_path / "run" / "results" / "average"
    assert results_folder(str(BASE)) == Path("results") / "base"


def test_hub_ids_have_a_folder_name() -> None:
    assert model_name("meta-llama/Llama-3.2-1B") == "meta-llama__Llama-3.2-1B"
