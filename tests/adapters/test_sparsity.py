"""Sparsity of stored deltas: against PEFT in float64, by hand, and what is refused."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_adapters import (
    THEIR_BASE,
    TWO_LAYERS,
    deltas_by_peft,
    peft_gpt2,
    peft_llama,
    write_adapter,
    write_model,
)
from untax.adapters import blocks
from untax.adapters.base import StoredModel
from untax.adapters.lora_deltas import AdapterDeltas
from untax.adapters.sparsity import (
    LayerSparsity,
    Thresholds,
    by_block,
    by_kind,
    measure_blocks,
    summarise,
)
from untax.adapters.stored import StoredAdapter
from untax.errors import UntaxError


def measure(adapter: Path, base: Path | None, thresholds: Thresholds) -> dict[str, LayerSparsity]:
    deltas = AdapterDeltas(StoredAdapter(adapter), None if base is None else StoredModel(base))
    found = deltas.measure(thresholds)
    assert deltas.elements == sum(layer.elements for layer in found)
    return {layer.module: layer for layer in found}


# Against PEFT


def between(count: int, size: Any, threshold: float) -> bool:
    """Whether a count is right, up to elements that rounding to fp32 may carry over the threshold."""
    return int((size < threshold * (1 - 1e-5)).sum()) <= count <= int((size < threshold * (1 + 1e-5)).sum())


def check_against_peft(base: Path, adapter: Path, layers: int) -> None:
    thresholds = Thresholds(absolute=0.003, relative=0.2)
    found = measure(adapter, base, thresholds)
    deltas, weights = deltas_by_peft(base, adapter)
    assert len(found) == layers
    assert found.keys() == deltas.keys()
    for module, delta in deltas.items():
        layer, size, rms = found[module], delta.abs(), weights[module].square().mean().sqrt().item()
        assert layer.elements == delta.numel()
        assert layer.base_rms == pytest.approx(rms, rel=1e-6)
        assert between(layer.below, size, thresholds.absolute)
        assert layer.below_relative is not None
        assert between(layer.below_relative, size, thresholds.relative * rms)
        assert 0 < layer.zeros == int((size == 0).sum()) < layer.below < layer.elements
        assert layer.l1 == pytest.approx(size.sum().item(), rel=1e-5)
        assert layer.squares == pytest.approx(size.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, 14),
        ({"use_rslora": True}, 14),
        ({"rank_pattern": {"q_proj": 2, r".*\.1\.mlp\.up_proj": 6}, "alpha_pattern": {"layers.0.mlp.up_proj": 3}}, 14),
        ({"use_rslora": True, "rank_pattern": {"q_proj": 9}, "alpha_pattern": {"layers.0.mlp.up_proj": 3}}, 14),
        ({"target_modules": ["embed_tokens", "lm_head", "v_proj"], "lora_alpha": 3}, 4),
        ({"dtype": "bfloat16"}, 14),
    ],
    ids=["plain", "rslora", "patterns", "rslora-patterns", "embedding", "bf16"],
)
def test_measures_are_those_of_pefts_merge(changes: dict[str, Any], layers: int, tmp_path: Path) -> None:
    check_against_peft(*peft_llama(tmp_path, **changes), layers)


def test_a_base_whose_weights_lie_the_other_way_round(tmp_path: Path) -> None:
    check_against_peft(*peft_gpt2(tmp_path), 4)


def test_a_tied_output_layer_is_measured_beside_the_embedding(tmp_path: Path) -> None:
    base, adapter = peft_llama(tmp_path, tied=True, target_modules=["lm_head"])
    stored = StoredModel(base)
    assert "lm_head.weight" not in stored.tensors
    (layer,) = measure(adapter, base, Thresholds()).values()
    assert layer.base_rms == stored.rms(stored.tensors["model.embed_tokens.weight"]) > 0


# By hand


def test_two_layers_by_hand(tmp_path: Path) -> None:
    adapter, base = write_adapter(tmp_path / "a", TWO_LAYERS), write_model(tmp_path / "b", THEIR_BASE)
    found = measure(adapter, base, Thresholds(absolute=8.0, relative=2.5))
    # Limits of the second share: 2.5 * 3 and 2.5 * sqrt(8) = 7.07; 8 itself is not below 8.
    first = LayerSparsity("model.layers.0.self_attn.q_proj", 4, 3, 3, 2, 14.0, 100.0, 3.0)
    second = LayerSparsity("model.layers.11.mlp.down_proj", 8, 3, 3, 1, 48.0, 412.0, math.sqrt(8))
    assert list(found.values()) == [first, second]
    assert (first.kind, first.block, second.kind, second.block) == ("q_proj", 0, "down_proj", 11)

    overall = summarise([first, second])
    assert overall.mean_below == (3 / 4 + 3 / 8) / 2  # the paper's: layers count alike
    assert overall.below == 6 / 12
    assert overall.mean_zeros == (2 / 4 + 1 / 8) / 2
    assert (overall.layers, overall.elements, overall.zeros, overall.l1) == (2, 12, 3 / 12, 62.0)
    assert overall.frobenius == math.sqrt(512)
    assert overall.rms == math.sqrt(512 / 12)
    assert overall.base_rms == pytest.approx(math.sqrt((36 + 64) / 12), rel=1e-15)
    assert (overall.mean_below_relative, overall.below_relative) == ((3 / 4 + 3 / 8) / 2, 6 / 12)


def test_without_a_base_nothing_is_relative(tmp_path: Path) -> None:
    found = measure(write_adapter(tmp_path, TWO_LAYERS), None, Thresholds())
    assert [layer.below_relative for layer in found.values()] == [None, None]
    overall = summarise(list(found.values()))
    assert (overall.mean_below_relative, overall.below_relative, overall.base_rms) == (None, None, None)
    assert overall.below == 3 / 12


@pytest.mark.parametrize(
    ("module", "kind", "block"),
    [
        ("model.layers.3.mlp.experts.7.w1", "w1", 3),
        ("model.layers.12.self_attn.q_proj.bias", "q_proj.bias", 12),
        ("transformer.h.0.attn.c_attn", "c_attn", 0),
        ("model.embed_tokens", "embed_tokens", None),
        ("connector.proj.0", "proj.0", 0),
        ("lm_head", "lm_head", None),
    ],
)
def test_module_types_and_blocks(module: str, kind: str, block: int | None) -> None:
    layer = LayerSparsity(module, 1, 0, None, 0, 1.0, 1.0, None)
    assert (layer.kind, layer.block) == (kind, block)


# Properties

layers_strategy = st.lists(
    st.builds(
        lambda block, kind, zeros, small, large: LayerSparsity(
            f"layers.{block}.{kind}", zeros + small + large, zeros + small, small, zeros, 1.5 * large, 2.5 * large, 0.5
        ),
        st.integers(0, 3),
        st.sampled_from(["q_proj", "up_proj"]),
        st.integers(0, 9),
        st.integers(0, 9),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=12,
)


@settings(derandomize=True, max_examples=100)
@given(layers_strategy)
def test_groups_add_up(layers: list[LayerSparsity]) -> None:
    overall = summarise(layers)
    for groups in (by_kind(layers).values(), by_block(layers).values()):
        assert sum(group.elements for group in groups) == overall.elements
        assert sum(group.layers for group in groups) == overall.layers
        assert sum(group.below * group.elements for group in groups) == pytest.approx(overall.below * overall.elements)
        means = [group.mean_below * group.layers for group in groups]
        assert sum(means) / overall.layers == pytest.approx(overall.mean_below)
        assert sum(group.l1 for group in groups) == pytest.approx(overall.l1)
    assert list(by_block(layers)) == sorted({layer.block or 0 for layer in layers})
    assert summarise(layers[::-1]) == overall


@settings(derandomize=True, max_examples=60)
@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=40),
    st.lists(st.integers(1, 39), max_size=6),
    st.integers(1, 6),
)
def test_how_a_delta_is_cut_does_not_matter(values: list[int], cuts: list[int], threshold: int) -> None:
    import torch

    delta = torch.tensor(values, dtype=torch.float32)
    edges = sorted({0, len(values), *(cut for cut in cuts if cut < len(values))})
    parts = [delta[start:stop].clone() for start, stop in itertools.pairwise(edges)]
    found = measure_blocks("m", parts, Thresholds(threshold, 0.5), 3.0, where=Path())
    size = [abs(value) for value in values]
    assert found == LayerSparsity(
        "m",
        len(size),
        sum(one < threshold for one in size),
        sum(one < 1.5 for one in size),
        size.count(0),
        float(sum(size)),
        float(sum(one**2 for one in size)),
        3.0,
    )


def test_the_size_of_blocks_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = peft_llama(tmp_path)
    thresholds = Thresholds(0.003, 0.2)
    whole = measure(adapter, base, thresholds)
    monkeypatch.setattr(blocks, "CPU_ELEMENTS", 100)
    for module, layer in measure(adapter, base, thresholds).items():
        other = whole[module]
        assert (layer.elements, layer.zeros) == (other.elements, other.zeros)
        assert layer.base_rms == pytest.approx(other.base_rms, rel=1e-12)
        # A matrix product of another height may round its last bit differently.
        assert abs(layer.below - other.below) <= 1
        assert layer.below_relative == pytest.approx(other.below_relative, abs=1)
        assert layer.l1 == pytest.approx(other.l1, rel=1e-6)
        assert layer.squares == pytest.approx(other.squares, rel=1e-6)


# What is refused, and what is named


def test_dora_is_refused_by_its_configuration_and_by_its_keys(tmp_path: Path) -> None:
    _, adapter = peft_llama(tmp_path, use_dora=True)
    with pytest.raises(UntaxError, match=r"DoRA.*not s\*B@A"):
        AdapterDeltas(StoredAdapter(adapter))
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace('"use_dora": true', '"use_dora": false'))
    with pytest.raises(UntaxError, match="DoRA"):
        AdapterDeltas(StoredAdapter(adapter))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: pissa_niter_4.*part of the base"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
        ({"target_parameters": ["experts.down_proj"]}, "bare parameters"),
        ({"init_lora_weights": True, "use_dora": False}, None),
        ({"init_lora_weights": "gaussian"}, None),
    ],
)
def test_kinds_of_lora(config: dict[str, Any], message: str | None, tmp_path: Path) -> None:
    adapter = StoredAdapter(write_adapter(tmp_path, TWO_LAYERS, **config))
    if message is None:
        assert len(AdapterDeltas(adapter).measure(Thresholds())) == 2
    else:
        with pytest.raises(UntaxError, match=message):
            AdapterDeltas(adapter)


def test_factors_that_are_no_matrices_are_refused(tmp_path: Path) -> None:
    import torch

    adapter = write_adapter(tmp_path, {"conv": (torch.ones(2, 1, 1, 1), torch.ones(1, 3, 2, 2))})
    with pytest.raises(UntaxError, match="in conv, whose factors are no matrices"):
        AdapterDeltas(StoredAdapter(adapter))


def test_an_adapter_without_layers_is_refused(tmp_path: Path) -> None:
    import torch

    adapter = write_adapter(tmp_path, {}, {"base_model.model.lm_head.weight": torch.ones(2)})
    with pytest.raises(UntaxError, match="no LoRA layer"):
        AdapterDeltas(StoredAdapter(adapter))


def test_nan_is_named_and_not_counted(tmp_path: Path) -> None:
    factors = {**TWO_LAYERS, "other": ([[1.0]], [[1.0, float("nan")]])}
    with pytest.raises(UntaxError, match=r"NaN or infinity in base_model\.model\.other\.lora_A\.weight"):
        AdapterDeltas(StoredAdapter(write_adapter(tmp_path, factors)))


def test_a_product_that_overflows_is_named(tmp_path: Path) -> None:
    deltas = AdapterDeltas(StoredAdapter(write_adapter(tmp_path, {"huge": ([[3e30]], [[3e30, 0.0]])})))
    with pytest.raises(UntaxError, match="delta of huge has NaN or infinity"):
        deltas.measure(Thresholds())


def test_other_keys_are_named(tmp_path: Path) -> None:
    _, adapter = peft_llama(tmp_path, modules_to_save=["lm_head"], target_modules=["q_proj"])
    deltas = AdapterDeltas(StoredAdapter(adapter))
    assert deltas.not_counted == ("base_model.model.lm_head.weight",)
    assert len(deltas.measure(Thresholds())) == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model.layers.11.mlp.down_proj.weight": None}, r"no tensor model\.layers\.11\.mlp\.down_proj\.weight"),
        ({"model.layers.11.mlp.down_proj.weight": [[1.0]] * 8}, r"down_proj\.weight is 8 x 1 there and 1 x 8 here"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    tensors = {name: value for name, value in {**THEIR_BASE, **changed}.items() if value is not None}
    adapter = StoredAdapter(write_adapter(tmp_path / "a", TWO_LAYERS))
    with pytest.raises(UntaxError, match=message):
        AdapterDeltas(adapter, StoredModel(write_model(tmp_path / "b", tensors)))


def test_nan_in_the_base_is_named(tmp_path: Path) -> None:
    tensors = {**THEIR_BASE, "model.layers.0.self_attn.q_proj.weight": [[3.0, float("nan")], [3.0, 3.0]]}
    base = StoredModel(write_model(tmp_path / "b", tensors))
    deltas = AdapterDeltas(StoredAdapter(write_adapter(tmp_path / "a", TWO_LAYERS)), base)
    with pytest.raises(UntaxError, match=r"NaN or infinity in model\.layers\.0\.self_attn\.q_proj\.weight"):
        deltas.measure(Thresholds())


@pytest.mark.parametrize("packed", [True, False])
def test_a_quantised_base_gives_no_relative_share(packed: bool, tmp_path: Path) -> None:
    import torch

    name = "model.layers.0.self_attn.q_proj.weight"
    tensors: dict[str, Any] = {**THEIR_BASE, name: torch.zeros(2, 1, dtype=torch.uint8)}
    if not packed:
        tensors["model.layers.0.self_attn.q_proj.qweight"] = tensors.pop(name)
    base = StoredModel(write_model(tmp_path / "b", tensors, quantization_config={"quant_method": "gptq"}))
    deltas = AdapterDeltas(StoredAdapter(write_adapter(tmp_path / "a", TWO_LAYERS)), base)
    assert deltas.base is None
    assert deltas.no_relative is not None
    assert "quantised" in deltas.no_relative
    assert ("U8" if packed else "quantization_config") in deltas.no_relative
    assert all(layer.below_relative is None for layer in deltas.measure(Thresholds()))
