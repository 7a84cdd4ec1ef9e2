"""Full fine-tunings on disk, the base's tensors, and where a base is looked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tiny_adapters import peft_llama, write_model
from untax.adapters import blocks
from untax.adapters.base import StoredModel, local_folder, own_base
from untax.adapters.model_deltas import ModelDeltas, is_whole_model
from untax.adapters.sparsity import Thresholds
from untax.errors import UntaxError

BASE: dict[str, Any] = {
    "model.embed_tokens.weight": [[1.0, 2.0], [3.0, 4.0]],
    "model.layers.0.mlp.up_proj.weight": [[1.0, -1.0], [7.0, 7.0]],
    "model.layers.0.input_layernorm.weight": [1.0, 1.0],
}


def deltas(tmp_path: Path, changes: dict[str, Any], base_changes: Any = None, **config: Any) -> ModelDeltas:
    """Of the base with changes; None leaves a tensor out."""
    both = [{**BASE, **(base_changes or {})}, {**BASE, **changes}]
    models = [
        StoredModel(
            write_model(tmp_path / name, {key: one for key, one in tensors.items() if one is not None}, **config)
        )
        for name, tensors in zip(("base", "model"), both, strict=True)
    ]
    return ModelDeltas(models[1], models[0])


def test_differences_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "CPU_ELEMENTS", 3)  # less than two rows
    changed = {
        "model.layers.0.mlp.up_proj.weight": [[1.0, -1.5], [7.0, 10.0]],
        "model.layers.0.input_layernorm.weight": [1.0, 0.875],
    }
    found = deltas(tmp_path, changed)
    done: list[int] = []
    layers = {layer.kind: layer for layer in found.measure(Thresholds(0.25, 0.2), done.append)}
    up, norm, embedding = (layers[kind] for kind in ("up_proj", "input_layernorm", "embed_tokens"))
    assert sum(done) == found.elements == 10
    assert (up.elements, up.below, up.below_relative, up.zeros, up.l1, up.squares) == (4, 2, 3, 2, 3.5, 9.25)
    assert up.base_rms == 5.0
    assert (norm.elements, norm.below, norm.below_relative, norm.zeros, norm.l1) == (2, 2, 2, 1, 0.125)
    assert (embedding.zeros, embedding.l1, embedding.block) == (4, 0.0, None)
    assert found.not_counted == ()


def test_numbers_and_tensors_of_no_element(tmp_path: Path) -> None:
    import torch

    single = {"model.scale": torch.tensor(2.0), "model.empty": torch.zeros(0, 3)}
    found = deltas(tmp_path, {**single, "model.scale": torch.tensor(2.5)}, single)
    assert found.elements == 11
    assert {layer.kind: layer.l1 for layer in found.measure(Thresholds())}["scale"] == 0.5


def test_dtypes_may_differ(tmp_path: Path) -> None:
    import torch

    values = torch.tensor([[1.0, -1.0], [7.0, 7.5]])
    for number, kind in enumerate((torch.bfloat16, torch.float16, torch.float64)):
        name = "model.layers.0.mlp.up_proj.weight"
        found = deltas(tmp_path / str(number), {name: values.to(kind)})
        assert sum(layer.l1 for layer in found.measure(Thresholds())) == 0.5


def test_a_merged_adapter_has_the_adapters_delta(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from untax.adapters.lora_deltas import AdapterDeltas
    from untax.adapters.stored import StoredAdapter

    base, adapter = peft_llama(tmp_path)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    stored = StoredModel(base)
    thresholds = Thresholds(0.003, 0.2)
    wanted = {layer.module: layer for layer in AdapterDeltas(StoredAdapter(adapter), stored).measure(thresholds)}
    found = {layer.module: layer for layer in ModelDeltas(StoredModel(tmp_path / "merged"), stored).measure(thresholds)}
    assert {module for module, layer in found.items() if layer.l1} == wanted.keys()
    for module, layer in wanted.items():
        assert found[module].l1 == pytest.approx(layer.l1, rel=1e-4)
        assert found[module].below == pytest.approx(layer.below, abs=2)
        assert found[module].base_rms == layer.base_rms


@pytest.mark.parametrize("side", ["model", "base"])
def test_a_tied_output_layer_on_one_side_is_no_weight_of_its_own(side: str, tmp_path: Path) -> None:
    copy = {"lm_head.weight": BASE["model.embed_tokens.weight"]}
    found = deltas(tmp_path, copy if side == "model" else {}, copy if side == "base" else {})
    assert found.not_counted == ("lm_head.weight",)
    assert found.elements == 10


def test_a_tied_output_layer_on_both_sides_counts_once(tmp_path: Path) -> None:
    copy = {"lm_head.weight": BASE["model.embed_tokens.weight"]}
    assert deltas(tmp_path / "tied", copy, copy, tie_word_embeddings=True).elements == 10
    assert deltas(tmp_path / "untied", copy, copy, tie_word_embeddings=False).elements == 14


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lm_head.weight": [[1.0, 2.0], [3.0, 5.0]]}, r"model has the tensor lm_head\.weight, but .*base has not"),
        ({"model.norm.weight": [1.0]}, r"model has the tensor model\.norm\.weight, but .*base has not"),
        ({"model.layers.0.mlp.up_proj.weight": None}, r"base has the tensor .*up_proj\.weight, but .*model has not"),
        ({"model.embed_tokens.weight": [[1.0, 2.0]]}, r"embed_tokens\.weight is 2 x 2 there and 1 x 2 here"),
    ],
)
def test_tensors_that_do_not_pair_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UntaxError, match=message):
        deltas(tmp_path, changes)


@pytest.mark.parametrize("both", [False, True])
def test_quantised_weights_are_refused(both: bool, tmp_path: Path) -> None:
    import torch

    packed = {"model.layers.0.mlp.up_proj.weight": torch.zeros(2, 2, dtype=torch.uint8)}
    with pytest.raises(UntaxError, match=r"up_proj\.weight is stored as U8 here"):
        deltas(tmp_path, packed, packed if both else {})


def test_buffers_are_named(tmp_path: Path) -> None:
    import torch

    inverse = {"model.layers.0.self_attn.rotary_emb.inv_freq": [1.0, 0.5]}
    positions = {"model.position_ids": torch.arange(3)}
    found = deltas(tmp_path, positions, {**positions, **inverse})
    assert found.not_counted == ("model.layers.0.self_attn.rotary_emb.inv_freq", "model.position_ids")
    assert found.elements == 10


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_the_model_is_named(value: float, tmp_path: Path) -> None:
    found = deltas(tmp_path, {"model.layers.0.input_layernorm.weight": [1.0, value]})
    with pytest.raises(UntaxError, match=r"delta of model\.layers\.0\.input_layernorm has NaN"):
        found.measure(Thresholds())


# Folders


def sharded(folder: Path, files: int = 2) -> Path:
    """The base in shards of one tensor each, the rest in the first; ``files`` of three are there."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    names = [f"model-{number}.safetensors" for number in range(3)]
    for file, (name, value) in list(zip(names, BASE.items(), strict=True))[:files]:
        save_file({name: torch.tensor(value)}, folder / file)
    index = {"weight_map": dict(zip(BASE, names, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    return folder


def test_shards(tmp_path: Path) -> None:
    model = StoredModel(sharded(tmp_path / "whole", 3))
    assert model.tensors.keys() == BASE.keys()
    assert model.rms(model.tensors["model.layers.0.mlp.up_proj.weight"]) == 5.0
    with pytest.raises(UntaxError, match=r"incomplete: model-2\.safetensors is missing"):
        StoredModel(sharded(tmp_path / "half", 2))


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UntaxError, match=r"no config\.json"):
        StoredModel(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert is_whole_model(tmp_path)
    with pytest.raises(UntaxError, match=r"no model\.safetensors"):
        StoredModel(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UntaxError, match="pickle"):
        StoredModel(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert not is_whole_model(tmp_path)


def test_a_file_that_is_cut_off_while_it_is_read(tmp_path: Path) -> None:
    model = StoredModel(write_model(tmp_path, BASE))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    last = max(model.tensors.values(), key=lambda tensor: tensor.stop)
    with pytest.raises(UntaxError, match="cut off while"):
        model.rms(last)


def cached(cache: Path, files: int) -> None:
    """The base as the hub's cache has it."""
    repository = cache / "models--tiny--base"
    sharded(repository / "snapshots" / "c0ffee", files)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_the_hubs_cache_is_looked_into_and_nothing_is_fetched(cache: Path) -> None:
    assert own_base({"base_model_name_or_path": "tiny/base"}, {}) == (
        None,
        "its base tiny/base is neither a folder here nor in the hub's cache",
    )
    cached(cache, 3)
    opened: dict[Path, StoredModel] = {}
    found, reason = own_base({"base_model_name_or_path": "tiny/base"}, opened)
    assert found is not None
    assert reason is None
    assert found.identity == "hub:tiny/base@c0ffee"
    assert own_base({"base_model_name_or_path": "tiny/base"}, opened)[0] is found
    assert own_base({"base_model_name_or_path": "tiny/base", "revision": "other"}, opened)[0] is None


def test_a_base_that_is_half_in_the_cache_is_not_at_hand(cache: Path) -> None:
    cached(cache, 2)
    found, reason = own_base({"base_model_name_or_path": "tiny/base"}, {})
    assert found is None
    assert reason == "its base tiny/base cannot be read (The model is incomplete: model-2.safetensors is missing)"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "does not say"),
        ({"base_model_name_or_path": "/no/such/folder/at/all"}, "neither a folder here"),
        ({"base_model_name_or_path": "tiny/base", "layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    ],
)
def test_why_a_base_is_not_at_hand(config: dict[str, Any], reason: str, cache: Path) -> None:
    found, said = own_base(config, {})
    assert found is None
    assert reason in (said or "")


def test_a_folder_is_a_base_by_its_content(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "base", BASE)
    assert local_folder(str(folder)) == folder
    identity = StoredModel(folder).identity
    write_model(folder, {**BASE, "model.layers.0.input_layernorm.weight": [1.0, 2.0]})
    assert len(identity) == 64
    assert StoredModel(folder).identity != identity
