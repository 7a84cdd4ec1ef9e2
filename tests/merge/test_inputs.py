"""Bad inputs: each a clear error that names the file, and nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from untax.errors import UntaxError

from .tiny_models import Config, linear, make_adapter, make_base, relative_error, untax_merge, weights


def refused(config: Path, out: Path, *arguments: str, **wish: Any) -> str:
    before = sorted(out.parent.iterdir())
    with pytest.raises(UntaxError) as error:
        untax_merge(config, out, *arguments, **wish)
    assert sorted(out.parent.iterdir()) == before
    return str(error.value)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(adapter: Path, **tensors: object) -> None:
    """Save the adapter again with tensors added, replaced, or (None) left out."""
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    changed = {**load_file(path), **{key.replace("__", "."): value for key, value in tensors.items()}}
    save_file({key: value for key, value in changed.items() if value is not None}, path)


Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


def test_several_problems_are_named_at_once(own_models: Path, config: Config, tmp_path: Path) -> None:
    (own_models / "a0/adapter_config.json").unlink()
    weights_file = own_models / "a1/adapter_model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-100])
    message = refused(config(**linear(own_models)), tmp_path / "out")
    assert "2 things are wrong" in message
    assert "no adapter_config.json" in message
    assert f"{weights_file}" in message
    assert "cut off" in message


def test_pickled_weights_are_refused(own_models: Path, config: Config, tmp_path: Path) -> None:
    (own_models / "a0/adapter_model.safetensors").rename(own_models / "a0/adapter_model.bin")
    assert "pickle" in refused(config(**linear(own_models)), tmp_path / "out")
    shutil.copytree(own_models / "base", own_models / "pickled")
    (own_models / "pickled/model.safetensors").rename(own_models / "pickled/pytorch_model.bin")
    models = [{"model": str(own_models / "pickled"), "parameters": {"weight": 1}}]
    assert "pickle" in refused(config(merge_method="linear", models=models), tmp_path / "out")


def test_nan_is_named(own_models: Path, config: Config, tmp_path: Path) -> None:
    import torch

    rewrite(own_models / "a1", **{f"{Q_PROJ}.lora_B.weight": torch.full((32, 4), float("nan"))})
    message = refused(config(**linear(own_models)), tmp_path / "out")
    assert f"NaN or infinity in {Q_PROJ}.lora_B.weight" in message


def test_missing_folder_and_missing_shard(own_models: Path, config: Config, tmp_path: Path) -> None:
    keys = linear(own_models)
    shutil.rmtree(own_models / "a1")
    assert "no such model folder" in refused(config(**keys), tmp_path / "out")
    (own_models / "base/model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (own_models / "base/model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors is missing" in refused(config(**keys), tmp_path / "out")


def test_base_that_the_adapter_was_not_trained_on(own_models: Path, config: Config, tmp_path: Path) -> None:
    other = make_base(own_models / "other", own_models / "base", seed=1)
    models = [{"model": f"{other}+{own_models / 'a0'}", "parameters": {"weight": 1.0}}]
    path = config(merge_method="linear", models=models)
    assert "trained on another base" in refused(path, tmp_path / "out")  # by content: the folder of its config is there
    edit_json(own_models / "a0/adapter_config.json", base_model_name_or_path="some/model")
    assert "trained on another base (some/model)" in refused(path, tmp_path / "out")  # by name
    edit_json(own_models / "a0/adapter_config.json", base_model_name_or_path="some/Other")
    untax_merge(path, tmp_path / "by-name")
    manifest = {"what": "adapter", "outputs": {}, "inputs": {"base": "0" * 64}}
    (own_models / "a0/untax.json").write_text(json.dumps(manifest))
    assert "trained on another base" in refused(path, tmp_path / "out")  # by the manifest's digest, whatever the name
    untax_merge(path, tmp_path / "crime", "--allow-crimes")


def test_moved_base_is_recognised_by_digest(own_models: Path, config: Config, tmp_path: Path) -> None:
    from untax.manifest import digest_model

    manifest = {"what": "adapter", "outputs": {}, "inputs": {"base": digest_model(own_models / "base")}}
    (own_models / "a0/untax.json").write_text(json.dumps(manifest))
    edit_json(own_models / "a0/adapter_config.json", base_model_name_or_path="the/old-name")
    models = [{"model": f"{own_models / 'base'}+{own_models / 'a0'}", "parameters": {"weight": 1.0}}]
    untax_merge(config(merge_method="linear", models=models), tmp_path / "out")


def test_shapes_that_do_not_fit(own_models: Path, config: Config, tmp_path: Path) -> None:
    wide = make_base(own_models / "wide", own_models / "base", intermediate_size=64)
    models = [{"model": f"{wide}+{own_models / 'a0'}", "parameters": {"weight": 1.0}}]
    message = refused(config(merge_method="linear", models=models), tmp_path / "out", "--allow-crimes")
    assert "mlp.down_proj.weight is 32 x 64 there and 32 x 48 here" in message


def test_key_of_no_tensor_and_layer_without_its_keys(own_models: Path, config: Config, tmp_path: Path) -> None:
    import torch

    path = config(**linear(own_models))
    stranger = "base_model.model.model.layers.0.self_attn.x_proj.lora_A.weight"
    rewrite(own_models / "a0", **{stranger: torch.ones(4, 32), stranger.replace("_A.", "_B."): torch.ones(32, 4)})
    message = refused(path, tmp_path / "out")
    assert "which the base" in message
    assert "x_proj" in message
    missing = {f"{Q_PROJ}.lora_{factor}.weight": None for factor in "AB"}
    rewrite(own_models / "a0", **{stranger: None, stranger.replace("_A.", "_B."): None}, **missing)
    message = refused(path, tmp_path / "out")
    assert "misses the factors" in message
    assert "q_proj" in message
    rewrite(own_models / "a0", **{f"{Q_PROJ}.lora_A.weight": torch.ones(4, 32)})
    assert f"{Q_PROJ}.lora_A.weight but not {Q_PROJ}.lora_B.weight" in refused(path, tmp_path / "out")


def test_tensor_that_an_adapter_changed_and_mergekit_does_not_know(
    own_models: Path, config: Config, tmp_path: Path
) -> None:
    """mergekit's Llama has no attention bias: it would drop what the adapter trained there."""
    base = make_base(own_models / "biased", own_models / "base", attention_bias=True)
    adapter = make_adapter(base, own_models / "bias-adapter", seed=3, lora_bias=True, target_modules=["q_proj"])
    models = [{"model": f"{base}+{adapter}", "parameters": {"weight": 1.0}}]
    path = config(merge_method="linear", models=models)
    message = refused(path, tmp_path / "out", engine="mergekit")
    assert "would lose" in message
    assert "self_attn.q_proj.bias" in message
    untax_merge(path, tmp_path / "streamed")
    name = "model.layers.0.self_attn.q_proj.bias"
    assert not weights(tmp_path / "streamed")[name].equal(weights(base)[name])


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 32}},
        {"target_modules": ["embed_tokens", "lm_head", "v_proj"]},
        {"use_dora": True},
        {"modules_to_save": ["lm_head", "norm"]},
    ],
    ids=["rslora-patterns", "embedding", "dora", "modules_to_save"],
)
def test_every_kind_of_adapter_arrives_whole(own_models: Path, config: Config, tmp_path: Path, changes: dict) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = own_models / "base"
    adapter = make_adapter(base, own_models / "special", seed=5, **changes)
    models = [{"model": f"{base}+{adapter}", "parameters": {"weight": 1.0}}]
    untax_merge(config(merge_method="linear", models=models, dtype="float32"), tmp_path / "out")
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()
    assert relative_error(weights(tmp_path / "out"), merged.state_dict(), weights(base)) < 1e-6


def test_embedding_adapter_of_a_tied_model(own_models: Path, config: Config, tmp_path: Path) -> None:
    """PEFT would add the delta to the output layer too, which was not trained so."""
    base = make_base(own_models / "tied", own_models / "base", tie_word_embeddings=True)
    adapter = make_adapter(base, own_models / "special", seed=5, target_modules=["embed_tokens", "q_proj"])
    models = [{"model": f"{base}+{adapter}", "parameters": {"weight": 1.0}}]
    path = config(merge_method="linear", models=models, dtype="float32")
    assert "Save the base untied first" in refused(path, tmp_path / "out")


def test_no_tokenizer_to_copy(own_models: Path, config: Config, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (own_models / "base" / name).unlink()
    path = config(**linear(own_models))
    assert "tokenizer" in refused(path, tmp_path / "out")
    untax_merge(path, tmp_path / "without", "--no-copy-tokenizer")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merge_method": "linaer"}, "Did you mean 'linear'?"),
        ({"models": None}, "names no models"),
        ({"models": [{"model": "a+b+c"}]}, "'+' as base+adapter"),
        ({"models": [{"model": 3}]}, "must be a path"),
        ({"merge_method": ["linear"]}, "names no merge_method"),
        ({"slices": []}, None),
        ({"parameters": {"normalise": True}}, "linear has no parameter 'normalise'"),
        ({"parameters": {"int8_mask": True}}, None),
        ({"dtpye": "float32"}, "Did you mean 'dtype'?"),
        ({"comment": "mine"}, None),
    ],
)
def test_configuration(changes: dict, message: str | None, models: Path, config: Config, tmp_path: Path) -> None:
    path = config(**{**linear(models), **changes})
    if message is None:
        said = untax_merge(path, tmp_path / "out")
        assert len(said) == (0 if "slices" in changes else 1)
        assert "slices" in changes or "and ignores it" in said[0] or "nobody reads the key comment" in said[0]
    else:
        assert message in refused(path, tmp_path / "out")


@pytest.mark.parametrize("method", ["ties", "slerp", "fisher"])
def test_methods_that_need_a_base_model(method: str, models: Path, config: Config, tmp_path: Path) -> None:
    message = refused(config(**{**linear(models), "merge_method": method}), tmp_path / "out")
    assert f"{method} needs a base_model" in message


def test_methods_of_two_models_name_those_that_are_there(own_models: Path, config: Config, tmp_path: Path) -> None:
    make_adapter(own_models / "base", own_models / "a2", seed=9)
    names = [f"{own_models / 'base'}+{own_models / name}" for name in ("a0", "a1", "a2")]
    keys = {"merge_method": "slerp", "base_model": names[0], "models": [{"model": name} for name in names]}
    message = refused(config(**keys, parameters={"t": 0.5}), tmp_path / "out")
    assert "slerp merges 2 models, but here are 3" in message
    assert names[2] in message


def test_a_base_that_is_scaled_and_settings_without_effect_are_told(
    models: Path, config: Config, tmp_path: Path
) -> None:
    path = config(**linear(models), parameters={"normalize": False, "weight": 0.25})
    path.write_text(path.read_text().replace("weight: 0.5", "weight: 0.25"))
    (note,) = untax_merge(path, tmp_path / "linear")
    assert "the weights sum to 0.5 and are not normalised" in note
    keys = {**linear(models), "merge_method": "task_arithmetic", "base_model": str(models / "base")}
    assert untax_merge(config(**keys, parameters={"density": 0.1}), tmp_path / "task") == [
        "Note: density has no effect on task_arithmetic."
    ]


def test_what_mergekit_merges_is_said_with_the_reason(models: Path, config: Config, tmp_path: Path) -> None:
    note = untax_merge(config(**{**linear(models), "merge_method": "karcher"}), tmp_path / "out")[0]
    assert note == "Note: mergekit itself merges, because of merge_method karcher."


def test_a_gpu_that_is_not_there(models: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "There is no GPU" in refused(config(**linear(models)), tmp_path / "out", "--cuda")


def test_as_adapter_is_refused_in_a_dry_run_too(own_models: Path, config: Config, tmp_path: Path) -> None:
    make_adapter(own_models / "base", own_models / "a0", seed=3, use_dora=True)
    message = refused(config(**linear(own_models)), tmp_path / "out", as_adapter=True, dry_run=True)
    assert "use_dora" in message


def test_linear_with_a_base_model_that_has_no_weight(models: Path, config: Config, tmp_path: Path) -> None:
    message = refused(config(**linear(models), base_model=str(models / "base")), tmp_path / "out")
    assert f"needs the parameter 'weight' for base_model {models / 'base'}" in message


def test_path_with_a_separator_in_it(own_models: Path, config: Config, tmp_path: Path) -> None:
    strange = (own_models / "base").rename(own_models / "base+1")
    models = [{"model": str(strange), "parameters": {"weight": 1}}]
    assert "Rename the folder" in refused(config(merge_method="linear", models=models), tmp_path / "out")


def test_missing_and_malformed_configuration(tmp_path: Path) -> None:
    assert "no such merge configuration" in refused(tmp_path / "none.yaml", tmp_path / "out")
    (tmp_path / "broken.yaml").write_text("models: [")
    assert "cannot be read" in refused(tmp_path / "broken.yaml", tmp_path / "out")


def twice(models: Path, second: str) -> dict[str, Any]:
    listed = [{"model": name, "parameters": {"weight": 1.0}} for name in (f"{models / 'base'}+{models / 'a0'}", second)]
    return {**linear(models), "models": listed}


@pytest.mark.parametrize("engine", ["stream", "mergekit"])
@pytest.mark.parametrize("spelling", ["{0}/base+{0}/a0", "{0}/base/+{0}/a0", "{0}/base+{0}/a0/"])
def test_model_listed_twice(engine: str, spelling: str, models: Path, config: Config, tmp_path: Path) -> None:
    message = refused(config(**twice(models, spelling.format(models))), tmp_path / "out", engine=engine)
    assert any(part in message for part in ("listed twice", "the same adapter", "Duplicate merge inputs"))


def test_full_model_listed_twice(models: Path, config: Config, tmp_path: Path) -> None:
    listed = [{"model": name, "parameters": {"weight": 1.0}} for name in (f"{models}/base", f"{models}/base/")]
    assert "the same model" in refused(config(merge_method="linear", models=listed), tmp_path / "out")
    keys = {**linear(models), "base_model": f"{models}/base/"}
    keys["models"] += [{"model": f"{models}/base", "parameters": {"weight": 1.0}}]
    assert "the same model" in refused(config(**keys), tmp_path / "out")


def opposite(models: Path, name: str, weights: tuple[Any, Any] = (1, -1), **keys: Any) -> dict[str, Any]:
    """Two models with these weights."""
    listed = [
        {"model": f"{models / 'base'}+{models / adapter}", "parameters": {"weight": weight}}
        for adapter, weight in zip(("a0", "a1"), weights, strict=True)
    ]
    base = {} if name == "linear" else {"base_model": str(models / "base")}
    return {"merge_method": name, "models": listed, "dtype": "float32", **base, **keys}


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("engine", ["stream", "mergekit"])
@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "ties", "dare_ties", "dare_linear"])
def test_weights_that_sum_to_zero(
    name: str, engine: str, dry_run: bool, models: Path, config: Config, tmp_path: Path
) -> None:
    path = config(**opposite(models, name, parameters={"normalize": True}))
    message = refused(path, tmp_path / "out", engine=engine, dry_run=dry_run)
    assert "The weights sum to 0 and cannot be normalised" in message
    assert str(path) in message


def test_tensors_that_no_model_has_a_weight_for(models: Path, config: Config, tmp_path: Path) -> None:
    """`ties` leaves them as they are; where that is all of them, it is a mistake."""
    only = [{"filter": "mlp", "value": 1}, {"value": 0}]
    untax_merge(config(**opposite(models, "ties", (only, only))), tmp_path / "out")
    merged, base = weights(tmp_path / "out"), weights(models / "base")
    assert {name for name in base if not merged[name].equal(base[name])} == {name for name in base if "mlp" in name}
    assert "sum to 0" in refused(config(**opposite(models, "ties", (0, 0))), tmp_path / "none")


@pytest.mark.parametrize(
    ("keys", "wish", "message"),
    [
        ({"models": [{}, {}]}, {}, "needs the parameter 'weight'"),
        ({"parameters": {"normalize": False}}, {"as_adapter": True}, "would scale the base too"),
        ({"parameters": {"normalize": "often"}}, {}, "no bool"),
    ],
)
def test_a_dry_run_finds_wrong_parameters(
    keys: dict[str, Any], wish: dict[str, Any], message: str, models: Path, config: Config, tmp_path: Path
) -> None:
    wanted = opposite(models, "linear", (1, 2))
    if "models" in keys:
        keys = {"models": [{"model": one["model"]} for one in wanted["models"]]}
    assert message in refused(config(**{**wanted, **keys}), tmp_path / "out", dry_run=True, **wish)


@pytest.mark.parametrize("density", ["1.5", "0", "-0.5", False, 0, 2])
def test_density_however_it_is_spelled(density: Any, models: Path, config: Config, tmp_path: Path) -> None:
    keys = opposite(models, "dare_exact", (1, 1), parameters={"density": [{"filter": "mlp", "value": density}]})
    assert "is not above 0 and at most 1" in refused(config(**keys), tmp_path / "out")


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ((float("nan"),), "no number"),
        ((float("inf"),), "no number"),
        ((1e300,), "no number of fp32"),
        ((0.12345671, 0.12345672), "same first six digits"),
        ((0.5, 0.5), "given twice"),
    ],
)
def test_scales(scales: tuple[float, ...], message: str, models: Path, config: Config, tmp_path: Path) -> None:
    assert message in refused(config(**linear(models)), tmp_path / "out", scales=scales)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_a_model_that_mergekit_merges(bad: float, own_models: Path, config: Config, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    shutil.copytree(own_models / "base", own_models / "other")
    tensors = dict(weights(own_models / "base"))
    tensors["model.norm.weight"][3] = bad
    save_file(tensors, own_models / "other/model.safetensors", metadata={"format": "pt"})
    listed = [{"model": str(own_models / name), "parameters": {"weight": 1}} for name in ("base", "other")]
    message = refused(config(merge_method="linear", models=listed, dtype="float32"), tmp_path / "out")
    assert "model.norm.weight has NaN or infinity" in message
    path = config(**linear(own_models), out_dtype="float16")
    message = refused(path, tmp_path / "out", engine="mergekit", scales=(1e9,))
    assert "overflows torch.float16" in message


@pytest.mark.parametrize("out", ["base", "a0", "."])
def test_an_input_is_never_replaced(out: str, own_models: Path, config: Config) -> None:
    before = sorted(own_models.rglob("*"))
    message = refused(config(**linear(own_models)), own_models / out, force=True)
    assert "take the place of one of its inputs" in message
    assert sorted(own_models.rglob("*")) == before
