"""A base in shards, and what its index may not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from untax.adapters.base import StoredModel
from untax.adapters.rows import read_rows
from untax.errors import UntaxError


def shards(folder: Path, index: Any, **files: dict[str, float]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    for name, tensors in files.items():
        save_file({key: torch.full((2,), value) for key, value in tensors.items()}, folder / f"{name}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def test_the_index_says_which_of_two_shards_has_a_tensor(tmp_path: Path) -> None:
    index = {"x": "one.safetensors", "y": "two.safetensors"}
    model = StoredModel(shards(tmp_path, index, one={"x": 1.0}, two={"x": 2.0, "y": 3.0}))
    assert model.tensors["x"].file.name == "one.safetensors"
    assert read_rows(model.tensors["x"], slice(None)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"x": "../one.safetensors"}, "a shard elsewhere: ../one.safetensors"),
        ({"x": "weights/one.safetensors"}, "a shard elsewhere"),
        ({"x": "one.safetensors", "y": "one.safetensors"}, "one.safetensors has no y, though the index says so"),
        ({"x": "three.safetensors"}, "three.safetensors is missing"),
        ({"x": 1}, "no weight_map"),
        ({}, "no weight_map"),
    ],
)
def test_index_that_does_not_fit(index: Any, message: str, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "model", tmp_path / "model/weights"):
        shards(folder, index, one={"x": 1.0})
    with pytest.raises(UntaxError, match=message):
        StoredModel(tmp_path / "model")
