"""A statistic's file: its rows against the tensors that were saved, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from untax.adapters.statistics import Diagonal
from untax.errors import UntaxError

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save(**tensors: Any) -> Path:
        from safetensors.torch import save_file

        path = tmp_path / "fisher.safetensors"
        save_file(tensors, path, metadata={"what": "fisher"})
        return path

    return save


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_rows_are_the_saved_ones_in_fp32(save: Save, dtype: str) -> None:
    import torch

    whole = torch.rand(5, 3).to(getattr(torch, dtype))
    rows = Diagonal(save(weight=whole)).rows("weight", slice(1, 4))
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, whole[1:4].float(), rtol=0, atol=0)


@settings(derandomize=True, max_examples=50)
@given(st.slices(7))
def test_any_consecutive_slice_is_as_of_a_list(tmp_path_factory: pytest.TempPathFactory, rows: slice) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("slices") / "f.safetensors"
    save_file({"bias": torch.arange(7.0)}, path)
    if rows.step in (None, 1):
        assert Diagonal(path).rows("bias", rows).tolist() == [float(one) for one in range(7)[rows]]
    else:
        with pytest.raises(ValueError, match="consecutive"):
            Diagonal(path).rows("bias", rows)


def test_what_is_done_to_rows_does_not_stay_in_the_file(save: Save) -> None:
    import torch

    diagonal = Diagonal(save(weight=torch.ones(2, 2)))
    diagonal.rows("weight", slice(None)).mul_(5)
    assert diagonal.rows("weight", slice(None)).tolist() == [[1, 1], [1, 1]]


def test_names_and_metadata(save: Save) -> None:
    import torch

    diagonal = Diagonal(save(b=torch.zeros(1), a=torch.zeros(2, 2), scalar=torch.tensor(3.0)))
    assert diagonal.names == ("a", "b", "scalar")
    assert diagonal.metadata == {"what": "fisher"}
    assert diagonal.rows("scalar", slice(None)).item() == 3
    diagonal.validate()


def test_a_file_without_metadata_has_none(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "f.safetensors")
    assert Diagonal(tmp_path / "f.safetensors").metadata == {}


def test_check_names_what_is_missing_and_both_shapes(save: Save) -> None:
    import torch

    diagonal = Diagonal(save(**{"layers.0.q_proj.weight": torch.zeros(3, 2)}))
    diagonal.check("layers.0.q_proj.weight", (3, 2))
    with pytest.raises(UntaxError, match=r"q_proj.weight has the shape \[3, 2\], but the model's weight \[2, 3\]"):
        diagonal.check("layers.0.q_proj.weight", (2, 3))
    with pytest.raises(UntaxError, match=r"no tensor layers.0.k_proj.weight. Did you mean 'layers.0.q_proj.weight'"):
        diagonal.check("layers.0.k_proj.weight", (3, 2))
    with pytest.raises(UntaxError, match=r"no tensor embed. It has 1, the first is layers.0.q_proj.weight"):
        diagonal.rows("embed", slice(None))


@pytest.mark.parametrize(
    ("value", "expected"),
    [(float("nan"), "NaN or infinity"), (float("inf"), "NaN or infinity"), (-1e-30, "below zero")],
)
@pytest.mark.parametrize("row", [0, 69_999])
def test_validate_finds_one_wrong_value_in_any_block(save: Save, value: float, expected: str, row: int) -> None:
    import torch

    wrong = torch.zeros(70_000, 8)  # three blocks
    wrong[row, 7] = value
    diagonal = Diagonal(save(good=torch.ones(2), wrong=wrong))
    with pytest.raises(UntaxError, match=f"wrong holds .*{expected}"):
        diagonal.validate()


def test_zeros_and_empty_tensors_are_valid(save: Save) -> None:
    import torch

    Diagonal(save(zero=-torch.zeros(3, 3), empty=torch.zeros(0, 3))).validate()


def test_no_numbers_are_refused(save: Save) -> None:
    import torch

    with pytest.raises(UntaxError, match="counts is of dtype I64"):
        Diagonal(save(counts=torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(UntaxError, match="holds no tensor"):
        Diagonal(save())


def test_what_is_no_safetensors_file_is_refused(save: Save, tmp_path: Path) -> None:
    import torch

    torch.save({"a": torch.zeros(1)}, tmp_path / "pickled.pt")
    with pytest.raises(UntaxError, match="no safetensors file"):
        Diagonal(tmp_path / "pickled.pt")
    with pytest.raises(UntaxError, match="cannot be read"):
        Diagonal(tmp_path / "missing.safetensors")
    path = save(a=torch.zeros(8))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UntaxError, match="cut off"):
        Diagonal(path)


def test_a_header_with_overlapping_tensors_is_refused(tmp_path: Path) -> None:
    entry = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    header = f'{{"a":{entry},"b":{entry}}}'.encode()
    path = tmp_path / "f.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UntaxError, match="cut off or is no safetensors"):
        Diagonal(path)
