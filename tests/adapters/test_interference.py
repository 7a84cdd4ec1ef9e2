"""Interference of tiny adapters against dense float64 NumPy, and what adapters that differ in other ways give."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_adapters import TWO_LAYERS, peft_gpt2, peft_llama, write_adapter
from untax.adapters import blocks
from untax.adapters.adapter_set import AdapterSet
from untax.adapters.interference import (
    Factors,
    LayerInterference,
    alone,
    dropped,
    mean_norm,
    measure_layer,
    pair,
    sum_norm,
)
from untax.errors import UntaxError


def dense(one: Factors) -> np.ndarray:
    return one.scale * one.up.double().numpy() @ one.down.double().numpy()


def reference(one: np.ndarray, other: np.ndarray, top: float) -> tuple[float, float, float]:
    """(cosine, sign conflict, overlap) of two deltas without ties among the largest."""
    cosine = (one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum())
    size = np.abs(one) + np.abs(other)
    conflict = size[one * other < 0].sum() / size.sum()
    k = max(1, round(top * one.size))
    largest = [set(np.argsort(-np.abs(delta), axis=None)[:k].tolist()) for delta in (one, other)]
    return cosine, conflict, len(largest[0] & largest[1]) / k


def drawn(count: int, seed: int, rows: int = 30, columns: int = 50, shared: float = 0.0) -> dict[int, Factors]:
    """Factors with different ranks and scales; ``shared`` makes the deltas alike."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(rows, 2, generator=generator), torch.randn(2, columns, generator=generator)
    found = {}
    for number in range(count):
        rank = 2 + number
        up, down = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
        up[:, :2] += shared * common[0]
        down[:2] += shared * common[1]
        found[number] = Factors(up, down, 0.5 + number)
    return found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 500), count=st.integers(2, 4), top=st.floats(0.001, 0.9), shared=st.floats(0, 3))
def test_equals_dense_float64(seed: int, count: int, top: float, shared: float) -> None:
    factors = drawn(count, seed, shared=shared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "CPU_ELEMENTS", 200)
        layer = measure_layer("q", factors, count, top, where="here")
    deltas = [dense(one) for one in factors.values()]
    for one, other in itertools.combinations(range(count), 2):
        found = pair([layer], one, other)
        cosine, conflict, overlap = reference(deltas[one], deltas[other], top)
        assert found.layers == 1
        assert found.cosine == pytest.approx(cosine, abs=1e-12)
        assert found.conflict == pytest.approx(conflict, abs=1e-5)
        # The product in fp32 may order two elements next to the threshold otherwise.
        assert found.overlap == pytest.approx(overlap, abs=1.01 / max(1, round(top * 1500)))
        assert pair([layer], other, one) == found
    positive = sum(np.maximum(delta, 0) for delta in deltas)
    negative = sum(np.maximum(-delta, 0) for delta in deltas)
    assert dropped([layer]) == pytest.approx(
        np.minimum(positive, negative).sum() / (positive + negative).sum(), abs=1e-5
    )
    elected = np.where(sum(deltas) >= 0, 1, -1)
    for number, delta in enumerate(deltas):
        own = alone([layer], number)
        assert own.norm == pytest.approx(np.linalg.norm(delta))
        assert own.rms == pytest.approx(np.sqrt((delta**2).mean()))
        assert own.mean == pytest.approx(np.abs(delta).mean(), rel=1e-5)
        assert own.dropped == pytest.approx(np.abs(delta[delta * elected < 0]).sum() / np.abs(delta).sum(), abs=1e-5)
    assert sum_norm([layer]) == pytest.approx(np.linalg.norm(sum(deltas)))
    mean = np.linalg.norm(sum(deltas) / count)
    rms = math.sqrt(sum(np.linalg.norm(delta) ** 2 for delta in deltas) / count)
    assert mean_norm([layer]) == pytest.approx(mean / rms)


def test_over_several_layers_sums_are_added() -> None:
    parts = [drawn(2, 1), drawn(2, 2, rows=20)]
    layers = [measure_layer(f"{number}", one, 2, 0.1, where="here") for number, one in enumerate(parts)]
    first, second = (np.concatenate([dense(one[number]).ravel() for one in parts]) for number in (0, 1))
    found = pair(layers, 0, 1)
    cosine, conflict, _ = reference(first, second, 0.1)
    assert (found.layers, found.cosine, found.conflict) == (2, pytest.approx(cosine), pytest.approx(conflict, abs=1e-5))
    counts = [reference(dense(one[0]), dense(one[1]), 0.1)[2] * dense(one[0]).size for one in parts]
    assert found.overlap == pytest.approx(sum(counts) / first.size)


def test_by_hand() -> None:
    """Two deltas of four elements, and a third in the reckoning of signs."""
    rows = ([[4.0, -2.0, 0.0, 1.0]], [[-1.0, -3.0, 5.0, 2.0]], [[-8.0, 0.0, 0.0, 0.0]])
    factors = {number: Factors(torch.ones(1, 1), torch.tensor(row), 1.0) for number, row in enumerate(rows)}
    layer = measure_layer("q", factors, 3, 0.5, where="here")
    assert pair([layer], 0, 1).conflict == 5 / 18  # 4 + 1, of 7 + 11
    assert pair([layer], 0, 1).cosine == pytest.approx((-4 + 6 + 2) / math.sqrt(21 * 39))
    assert pair([layer], 0, 1).overlap == 0.5  # {4, -2} and {-3, 5} share the second
    assert layer.l1 == (7.0, 11.0, 8.0)
    assert layer.largest[2] == (1.0, 0.0, 1.0)  # zeros are not among the largest
    assert layer.dropped == (4.0, 0.0, 0.0)  # +4 against -1-8
    assert [alone([layer], number).dropped for number in range(3)] == [4 / 7, 0.0, 0.0]
    assert dropped([layer]) == 4 / 26


def test_it_drops_what_ties_drops() -> None:
    """Against the election of the merge, with sums of zero among them."""
    from untax.merge.methods.consensus import elect

    generator = torch.Generator().manual_seed(7)
    rows = torch.randint(-3, 4, (3, 2000), generator=generator).float()
    factors = {number: Factors(torch.ones(1, 1), row[None], 1.0) for number, row in enumerate(rows)}
    layer = measure_layer("q", factors, 3, 0.1, where="here")
    kept = elect(rows[:, None].clone(), (1.0, 1.0, 1.0), normalize=False)
    assert ((rows.sum(dim=0) == 0) & (rows != 0).any(dim=0)).sum() > 50
    assert sum(layer.l1) - sum(layer.dropped) == float(kept.abs().sum())
    for number, row in enumerate(rows):
        agrees = (row * torch.where(rows.sum(dim=0) >= 0, 1.0, -1.0)) > 0
        assert layer.l1[number] - layer.dropped[number] == float(row[agrees].abs().sum())


@pytest.mark.parametrize(("sign", "conflict"), [(1.0, 0.0), (-1.0, 1.0)])
def test_the_same_and_its_opposite(sign: float, conflict: float) -> None:
    one = drawn(1, 0, rows=300, columns=2000)[0]
    layer = measure_layer("q", {0: one, 1: one._replace(scale=sign * one.scale)}, 2, 0.1, where="here")
    found = pair([layer], 0, 1)
    assert found.overlap == 1.0
    # Where nothing differs it is exactly zero.
    assert found.conflict == (pytest.approx(1.0, abs=2e-6) if conflict else 0.0)
    assert found.cosine == pytest.approx(sign, abs=1e-15)
    assert dropped([layer]) == pytest.approx(0.0 if sign > 0 else 0.5, abs=1e-6)
    assert sign < 0 or layer.dropped == (0.0, 0.0)
    assert mean_norm([layer]) == pytest.approx(1.0 if sign > 0 else 0.0)


def test_independent_deltas_give_one_half_and_chance() -> None:
    layer = measure_layer("q", drawn(2, 3, rows=400, columns=3000), 2, 0.1, where="here")
    found = pair([layer], 0, 1)
    assert found.conflict == pytest.approx(0.5, abs=0.03)
    assert found.overlap == pytest.approx(0.1, abs=0.02)


def test_a_delta_of_zeros_is_not_compared() -> None:
    zero = Factors(torch.zeros(3, 1), torch.ones(1, 4), 1.0)
    other = Factors(torch.ones(3, 1), torch.tensor([[1.0, -1.0, 2.0, 0.0]]), 1.0)
    layer = measure_layer("q", {0: zero, 1: other, 2: zero}, 3, 0.1, where="here")
    assert pair([layer], 0, 1) == pair([layer], 1, 2)
    assert (pair([layer], 0, 1).cosine, pair([layer], 0, 1).conflict, pair([layer], 0, 1).overlap) == (None, 0.0, 0.0)
    assert pair([layer], 0, 2).conflict is pair([layer], 0, 2).overlap is None
    assert dropped([layer]) == 0.0
    only = measure_layer("q", {0: zero, 1: zero}, 2, 0.1, where="here")
    assert dropped([only]) is mean_norm([only]) is None


def test_ties_at_the_threshold_do_not_favour_some_elements() -> None:
    one = Factors(torch.ones(10, 1), torch.ones(1, 10), 1.0)
    layer = measure_layer("q", {0: one, 1: one}, 2, 0.1, where="here")
    assert (layer.largest[0][1], pair([layer], 0, 1).overlap) == (100.0, 1.0)


def test_an_overflow_is_refused() -> None:
    huge = Factors(torch.full((2, 1), 3e38), torch.full((1, 2), 3e38), 1.0)
    with pytest.raises(UntaxError, match="too large for float32"):
        measure_layer("q", {0: huge, 1: huge}, 2, 0.1, where="outputs/a")


# Adapters on disk


def as_dense(folder: Path, module: str) -> np.ndarray:
    from safetensors.numpy import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    prefix = f"base_model.model.{module}.lora_"
    product = tensors[f"{prefix}B.weight"].astype(np.float64) @ tensors[f"{prefix}A.weight"].astype(np.float64)
    return config["lora_alpha"] / config["r"] * product


@pytest.mark.parametrize("make", [peft_llama, peft_gpt2])
def test_adapters_of_peft(tmp_path: Path, make: Any) -> None:
    _, first = make(tmp_path)
    second = tmp_path / "second"
    second.mkdir()
    from safetensors.torch import load_file, save_file

    tensors = load_file(first / "adapter_model.safetensors")
    torch.manual_seed(1)
    save_file(
        {key: tensor + 0.05 * torch.randn_like(tensor) for key, tensor in tensors.items()},
        second / "adapter_model.safetensors",
    )
    config = json.loads((first / "adapter_config.json").read_text())
    (second / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 2}))
    opened = AdapterSet([first, second])
    seen: list[int] = []
    layers = opened.measure(0.2, seen.append)
    assert sum(seen) == opened.elements == 2 * sum(layer.elements for layer in layers)
    assert opened.notes == []
    for layer in layers:
        cosine, conflict, overlap = reference(as_dense(first, layer.module), as_dense(second, layer.module), 0.2)
        found = pair([layer], 0, 1)
        assert found.cosine == pytest.approx(cosine)
        assert found.conflict == pytest.approx(conflict, abs=1e-5)
        assert found.overlap == pytest.approx(overlap, abs=0.005)


def test_layers_that_not_all_have(tmp_path: Path) -> None:
    both = write_adapter(tmp_path / "both", TWO_LAYERS)
    q_proj, down_proj = (write_adapter(tmp_path / name.split(".")[-1], {name: TWO_LAYERS[name]}) for name in TWO_LAYERS)
    layers = AdapterSet([both, q_proj, down_proj]).measure()
    assert [layer.module for layer in layers] == list(TWO_LAYERS)  # 11 after 0
    assert [layer.adapters for layer in layers] == [(0, 1), (0, 2)]
    assert [pair(layers, *numbers).layers for numbers in ((0, 1), (0, 2), (1, 2))] == [1, 1, 0]
    nothing = pair(layers, 1, 2)
    assert nothing.cosine is nothing.conflict is nothing.overlap is None
    assert pair(layers, 0, 1).cosine == pytest.approx(1.0)
    # Where an adapter has no layer its delta is zero: the squares of the norms are 512, 100 and 412.
    squares = 4 * (100 + 412)
    assert mean_norm(layers) == pytest.approx(math.sqrt(squares / (3 * 2 * (100 + 412))))
    alone = AdapterSet([q_proj, down_proj]).measure()
    assert [layer.l1 for layer in alone] == [(14.0, 0.0), (0.0, 48.0)]
    assert dropped(alone) == 0.0


def adapter_of(folder: Path, base: str | None = None, digest: str | None = None) -> Path:
    # Each folder's adapter is one of its own.
    config = {} if base is None else {"base_model_name_or_path": base}
    write_adapter(folder, TWO_LAYERS, revision=folder.name, **config)
    if digest is not None:
        manifest = {"what": "adapter", "inputs": {"base": digest}, "outputs": {}}
        (folder / "untax.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        (("org/one", "aa"), ("org/two", "bb"), "different bases"),
        (("org/one", "aa"), ("org/one", "bb"), "different bases"),
        (("org/one", "hub:org/one@1"), ("org/one", "hub:org/one@2"), "different bases"),
        (("org/one", "aa"), ("/models/two", "aa"), ""),
        (("org/one", "aa"), ("org/two", None), "nothing"),
        (("org/one", "hub:org/one@1"), ("/models/one", "aa"), ""),
        (("org/one", "hub:org/one@unknown"), ("org/two", "hub:org/two@unknown"), "nothing"),
        (("org/one", None), ("/models/ONE", None), ""),
        ((None, None), ("org/two", None), ""),
    ],
)
def test_bases(tmp_path: Path, first: Any, second: Any, outcome: str) -> None:
    # A third one that agrees with the first does not hide what the second is.
    folders = [
        adapter_of(tmp_path / "a", *first),
        adapter_of(tmp_path / "b", *second),
        adapter_of(tmp_path / "c", *first),
    ]
    if outcome == "different bases":
        with pytest.raises(UntaxError, match=outcome):
            AdapterSet(folders)
    else:
        notes = AdapterSet(folders).notes
        assert [outcome in note for note in notes] == ([True] if outcome else [])


def test_other_shapes_and_kinds_are_refused(tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one", TWO_LAYERS)
    name, (b, a) = next(iter(TWO_LAYERS.items()))
    wider = write_adapter(tmp_path / "wider", {name: (b, [[*a[0], 1.0]])})
    with pytest.raises(UntaxError, match=r"q_proj.weight is 2 x 3 here and 2 x 2 in") as error:
        AdapterSet([one, wider])
    assert error.value.where == str(wider)
    dora = write_adapter(tmp_path / "dora", TWO_LAYERS, use_dora=True)
    with pytest.raises(UntaxError, match="DoRA") as error:
        AdapterSet([one, dora])
    assert "sparsity" not in str(error.value.fix)
    broken = write_adapter(tmp_path / "nan", {name: (b, [[math.nan, 1.0]])})
    with pytest.raises(UntaxError, match="NaN"):
        AdapterSet([one, broken])
    with pytest.raises(UntaxError, match="no other"):
        AdapterSet([one])
    copy = write_adapter(tmp_path / "copy", TWO_LAYERS)
    with pytest.raises(UntaxError, match=r"are the same: .*one, .*copy") as error:
        AdapterSet([one, copy])
    assert error.value.where == str(copy)


def test_factors_of_one_layer_are_in_memory_only(tmp_path: Path) -> None:
    """No layer is ever dense: every tensor that is made stays below a block and the factors."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    factors = drawn(3, 0, rows=2048, columns=1024)
    with Watch():
        layer: LayerInterference = measure_layer("q", factors, 3, 0.1, where="here")
    assert layer.elements == 1 << 21
    assert largest <= 3 * blocks.CPU_ELEMENTS
