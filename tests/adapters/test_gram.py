"""A file of Grams: what it gives back, what it shares, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from untax.adapters.gram import Grams
from untax.errors import UntaxError


def save(path: Path, tensors: dict[str, Any], **metadata: Any) -> Path:
    from safetensors.torch import save_file

    save_file(
        tensors,
        path,
        metadata={key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()},
    )
    return path


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    import torch

    torch.manual_seed(0)
    tensors = {"q.weight": torch.rand(3, 3), "down.weight": torch.rand(5, 5).bfloat16()}
    return save(tmp_path / "g.safetensors", tensors, shared={"k.weight": "q.weight"}, transposed=["down.weight"])


def test_every_weight_has_its_gram(stored: Path) -> None:
    import torch
    from safetensors.torch import load_file

    grams, saved = Grams(stored), load_file(stored)
    assert grams.names == ("down.weight", "k.weight", "q.weight")
    for name, key in (("q.weight", "q.weight"), ("k.weight", "q.weight"), ("down.weight", "down.weight")):
        assert name in grams
        assert grams.gram(name).dtype == torch.float32
        assert torch.equal(grams.gram(name), saved[key].float())
    assert "v.weight" not in grams
    assert [grams.is_transposed(name) for name in grams.names] == [True, False, False]
    grams.gram("q.weight").zero_()
    assert grams.gram("q.weight").any()


def test_what_fits_no_weight_is_refused(stored: Path) -> None:
    grams = Grams(stored)
    grams.check("k.weight", 3)
    with pytest.raises(UntaxError, match=r"Gram of k.weight is 3 x 3, but the layer reads 4") as error:
        grams.check("k.weight", 4)
    assert error.value.where == str(stored)
    with pytest.raises(UntaxError, match=r"no Gram of v.weight; the file has 3"):
        grams.check("v.weight", 3)
    with pytest.raises(UntaxError, match=r"no Gram of v.weight"):
        grams.gram("v.weight")


@pytest.mark.parametrize(
    ("shape", "dtype", "metadata", "message"),
    [
        ((3, 2), "float32", {}, "w is no Gram"),
        ((3,), "float32", {}, "w is no Gram"),
        ((2, 2), "int32", {}, "w is no Gram"),
        ((2, 2), "float32", {"shared": {"k": "q"}}, "Gram of q, which it lacks"),
        ((2, 2), "float32", {"shared": "{"}, "'shared' cannot be read"),
        ((2, 2), "float32", {"shared": ["k"]}, "'shared' cannot be read"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, metadata: dict[str, Any], message: str
) -> None:
    import torch

    path = save(tmp_path / "g.safetensors", {"w": torch.zeros(shape, dtype=getattr(torch, dtype))}, **metadata)
    with pytest.raises(UntaxError, match=message):
        Grams(path)


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(UntaxError, match="cannot be read"):
        Grams(tmp_path / "none.safetensors")
    with pytest.raises(UntaxError, match="no tensor"):
        Grams(save(tmp_path / "g.safetensors", {}, what="gram"))
