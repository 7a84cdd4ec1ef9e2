"""Rows of tensors on disk against safetensors' own reader."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from untax.adapters.header import read_header
from untax.adapters.rows import read_rows
from untax.errors import UntaxError


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7, 5), (7,), (7, 2, 3), ()])
def test_rows_are_those_of_the_tensor(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensors = {"before": torch.randn(3), "it": torch.randn(shape).to(dtype), "then": torch.randn(2)}
    save_file(tensors, tmp_path / "t.safetensors")
    info = read_header(tmp_path / "t.safetensors")["it"]
    rows = slice(2, 6) if shape else slice(0, 1)
    found = read_rows(info, rows)
    assert found.dtype == dtype
    assert torch.equal(found.reshape(-1), (tensors["it"][rows] if shape else tensors["it"]).reshape(-1))


def test_a_file_that_was_cut_off_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_file({"it": torch.randn(4, 4)}, path)
    info = read_header(path)["it"]
    path.write_bytes(path.read_bytes()[:-8])
    assert read_rows(info, slice(0, 3)).shape == (3, 4)
    with pytest.raises(UntaxError, match="cut off"):
        read_rows(info, slice(2, 4))
