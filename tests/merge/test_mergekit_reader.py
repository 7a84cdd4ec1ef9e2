"""mergekit with adapters read as deltas, against stock mergekit with the merged copies that PEFT writes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from untax.errors import UntaxError

from .tiny_models import make_adapter, make_base, relative_error, weights

# Parameters of the merge, and of each model.
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "multislerp": ({}, {"weight": 0.5}),
    "nearswap": ({"t": 0.01}, {}),
    "ram": ({}, {}),
    "ramplus_tl": ({}, {}),
    "sce": ({"select_topk": 0.5}, {}),
    "linear": ({}, {"weight": 0.5}),
    "slerp": ({"t": 0.4}, {}),
    "nuslerp": ({}, {"weight": 0.4}),
    "passthrough": ({}, {}),
    "model_stock": ({}, {}),
    "arcee_fusion": ({}, {}),
    "karcher": ({}, {}),
    "task_arithmetic": ({}, {"weight": 0.6}),
    "ties": ({}, {"weight": 1.0, "density": 0.5}),
    "dare_ties": ({}, {"weight": 0.6, "density": 0.5}),
    "dare_linear": ({}, {"weight": 0.6, "density": 0.5}),
    "breadcrumbs": ({}, {"weight": 0.6, "density": 0.8, "gamma": 0.1}),
    "breadcrumbs_ties": ({}, {"weight": 0.6, "density": 0.8, "gamma": 0.1}),
    "della": ({}, {"weight": 0.6, "density": 0.5, "epsilon": 0.1}),
    "della_linear": ({}, {"weight": 0.6, "density": 0.5, "epsilon": 0.1}),
}
WITHOUT_BASE = {"linear", "karcher", "passthrough"}
ADAPTED_BASE = {"slerp", "nearswap", "arcee_fusion"}


def configuration(folder: Path, method: str, adapters: tuple[str, ...] = ("a0", "a1"), **keys: Any) -> dict[str, Any]:
    shared, own = METHODS[method]
    names = [f"{folder / 'base'}+{folder / adapter}" for adapter in adapters]
    names = names[:1] if method == "passthrough" else names
    config: dict[str, Any] = {
        "merge_method": method,
        "dtype": "float32",
        "models": [{"model": name, **({"parameters": own} if own else {})} for name in names],
        **({"parameters": shared} if shared else {}),
    }
    if method not in WITHOUT_BASE:
        config["base_model"] = names[0] if method in ADAPTED_BASE else str(folder / "base")
    return {**config, **keys}


def ours(config: dict[str, Any], out: Path, *options: str, scale: float = 1.0) -> list[str]:
    from untax.merge.mergekit_yaml import read_config, read_options, run

    out.mkdir()
    arguments = ["--quiet", "--random-seed=7", *options]
    validated = read_config(config, where="test")
    return run(validated, read_options(arguments), yaml.safe_dump(config), out, where="test", scale=scale)


def stock(config: dict[str, Any], out: Path, cache: Path) -> None:
    from mergekit.io.tasks import LoaderCache
    from mergekit.scripts.run_yaml import main

    LoaderCache().loaders.clear()
    path = out.with_name(f"{out.name}.yaml")
    path.write_text(yaml.safe_dump(config))
    main.main([str(path), str(out), "--quiet", "--random-seed=7", f"--lora-merge-cache={cache}"], standalone_mode=False)
    LoaderCache().loaders.clear()


@pytest.fixture(scope="module")
def warm_cache(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PEFT's merged copies: stock, while it makes them, lets PEFT draw from the generator of the random methods."""
    from mergekit.common import ModelReference

    cache = tmp_path_factory.mktemp("cache")
    for name in ("a0", "a1"):
        ModelReference.parse(f"{models / 'base'}+{models / name}").merged(cache_dir=str(cache))
    return cache


def test_the_methods_are_those_of_mergekit() -> None:
    from mergekit.merge_methods.registry import registered_methods

    from untax.plugins import registry

    own = set(registry("merge_methods"))
    assert {method.spec.name for method in registered_methods()} - (own - set(METHODS)) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_identical_to_stock(method: str, models: Path, warm_cache: Path, tmp_path: Path) -> None:
    config = configuration(models, method)
    stock(config, tmp_path / "stock", warm_cache)
    assert ours(config, tmp_path / "ours") == []
    assert (tmp_path / "ours/model.safetensors").read_bytes() == (tmp_path / "stock/model.safetensors").read_bytes()
    assert (tmp_path / "ours/config.json").read_bytes() == (tmp_path / "stock/config.json").read_bytes()
    base = weights(models / "base")
    assert any(not base[name].equal(tensor) for name, tensor in weights(tmp_path / "ours").items())


def test_slices_are_identical_to_stock(models: Path, warm_cache: Path, tmp_path: Path) -> None:
    """Layers of an adapted model stacked twice."""
    source = {"model": f"{models / 'base'}+{models / 'a0'}", "layer_range": [0, 2]}
    slices = [{"sources": [source]}, {"sources": [{**source, "layer_range": [1, 2]}]}]
    config = {"merge_method": "passthrough", "slices": slices, "dtype": "float32"}
    stock(config, tmp_path / "stock", warm_cache)
    ours(config, tmp_path / "ours")
    assert (tmp_path / "ours/model.safetensors").read_bytes() == (tmp_path / "stock/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["embed_tokens", "lm_head", "v_proj"]},
        {"modules_to_save": ["lm_head", "norm"]},
        {"use_dora": True},
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 32}},
    ],
    ids=["embedding", "modules_to_save", "dora", "rslora"],
)
def test_other_kinds_are_identical_to_stock(settings: dict[str, Any], own_models: Path, tmp_path: Path) -> None:
    make_adapter(own_models / "base", own_models / "special", seed=5, **settings)
    config = configuration(own_models, "ties", ("a0", "special"))
    stock(config, tmp_path / "stock", tmp_path / "cache")
    ours(config, tmp_path / "ours")
    assert (tmp_path / "ours/model.safetensors").read_bytes() == (tmp_path / "stock/model.safetensors").read_bytes()


def test_biases_are_identical_to_stock(own_models: Path, tmp_path: Path) -> None:
    """A Qwen2, whose attention biases mergekit knows."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    )
    folder = tmp_path / "biased"
    model.save_pretrained(folder / "base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "base" / name).write_bytes((own_models / "base" / name).read_bytes())
    make_adapter(folder / "base", folder / "a0", seed=1, target_modules=["q_proj", "k_proj"], bias="all")
    make_adapter(folder / "base", folder / "a1", seed=2, target_modules=["q_proj", "k_proj"], lora_bias=True)
    config = configuration(folder, "task_arithmetic")
    stock(config, tmp_path / "stock", tmp_path / "cache")
    ours(config, tmp_path / "ours")
    assert (tmp_path / "ours/model.safetensors").read_bytes() == (tmp_path / "stock/model.safetensors").read_bytes()
    name = "model.layers.0.self_attn.q_proj.bias"
    assert not weights(tmp_path / "ours")[name].equal(weights(folder / "base")[name])


def test_nothing_is_written_for_an_adapter(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that is opened to write, by Python or by safetensors, lies in the output folder."""
    import builtins
    import os

    import safetensors.torch
    from peft import PeftModel

    written: list[Path] = []
    stock_open, stock_save = builtins.open, safetensors.torch.save_file

    def seen_open(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if isinstance(file, str | os.PathLike) and set(mode) & set("wax+"):
            written.append(Path(file))
        return stock_open(file, mode, *arguments, **options)

    def seen_save(tensors: Any, filename: Any, *arguments: Any, **options: Any) -> Any:
        written.append(Path(filename))
        return stock_save(tensors, filename, *arguments, **options)

    monkeypatch.setattr(builtins, "open", seen_open)
    monkeypatch.setattr(safetensors.torch, "save_file", seen_save)
    monkeypatch.setattr(PeftModel, "from_pretrained", lambda *_: pytest.fail("PEFT merges a copy"))
    before = snapshot(models)
    with watched(tmp_path) as folders:
        ours(configuration(models, "ties"), tmp_path / "out", f"--lora-merge-cache={tmp_path / 'cache'}")
    assert any(path.name.endswith(".safetensors") for path in written)
    assert {path.parent for path in written} <= {tmp_path / "out", Path(os.devnull).parent}
    assert folders == {"out"}
    assert snapshot(models) == before


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


class watched:
    """The names that appear in a folder while the block runs, looked up all the time."""

    def __init__(self, folder: Path):
        self.folder, self.names, self.ended = folder, set[str](), threading.Event()

    def __enter__(self) -> set[str]:
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self.names

    def _look(self) -> None:
        while not self.ended.wait(0.002):
            self.names.update(path.name for path in self.folder.iterdir())

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.names.update(path.name for path in self.folder.iterdir())


def test_mergekit_is_as_it_was_afterwards(models: Path, tmp_path: Path) -> None:
    from mergekit.common import ModelReference
    from mergekit.io.tasks import LoaderCache, SaveTensor

    def patched() -> list[Any]:
        return [LoaderCache.get, ModelReference.merged, SaveTensor.execute, dict(LoaderCache.loaders)]

    before = patched()
    ours(configuration(models, "linear"), tmp_path / "one", scale=0.5)
    assert patched() == before
    with pytest.raises(UntaxError, match="mergekit failed"):
        ours(configuration(models, "linear", models=[{"model": str(models / "base")}]), tmp_path / "two")
    assert patched() == before


def test_a_merged_copy_that_is_asked_for_by_name_has_the_adapter_in_it(models: Path, tmp_path: Path) -> None:
    """`mergekit-evolve` reads such copies itself; without the adapter it would evolve the base."""
    from mergekit.common import ModelReference

    from untax.merge.mergekit_reader import adapters_as_deltas

    reference = ModelReference.model_validate(f"{models / 'base'}+{models / 'a0'}")
    with adapters_as_deltas():
        copy = Path(reference.merged(cache_dir=str(tmp_path)).model.path)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not weights(copy)[name].equal(weights(models / "base")[name])


@pytest.fixture(scope="module")
def bf16(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same models with a base in bf16, one of whose tensors is in fp32."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("bf16")
    shutil.copytree(models, folder, dirs_exist_ok=True)
    path = folder / "base/model.safetensors"
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"dtype": None}, None),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "float16", "out_dtype": "float32"}, "float32"),
    ],
)
def test_one_rounding(keys: dict[str, Any], wanted: str | None, bf16: Path, tmp_path: Path) -> None:
    """Whatever dtype says, the sum is taken in fp32 and rounded once; without a dtype, as the base stores it."""
    import json

    import torch

    config = {key: value for key, value in configuration(bf16, "task_arithmetic", **keys).items() if value}
    ours({**config, "dtype": "float32", "out_dtype": "float32"}, tmp_path / "exact")
    ours(config, tmp_path / "out")
    base, exact, found = (weights(folder) for folder in (bf16 / "base", tmp_path / "exact", tmp_path / "out"))
    for name, tensor in found.items():
        dtype = base[name].dtype if wanted is None else getattr(torch, wanted)
        assert tensor.equal(exact[name].to(dtype)), name
        assert tensor.dtype == dtype
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == (wanted or "bfloat16")


@pytest.mark.parametrize("method", ["ties", "linear", "slerp"])
def test_scaled_merges(method: str, models: Path, tmp_path: Path) -> None:
    config = configuration(models, method)
    ours(config, tmp_path / "full")
    ours(config, tmp_path / "scaled", scale=0.3)
    base, full = weights(models / "base"), weights(tmp_path / "full")
    wanted = {name: base[name] + 0.3 * (full[name] - base[name]) for name in base}
    assert relative_error(weights(tmp_path / "scaled"), wanted, base) < 1e-6


def test_scaled_full_models(own_models: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        make_base(own_models / f"full{seed}", own_models / "base", seed=seed)
    names = [{"model": str(own_models / f"full{seed}"), "parameters": {"weight": 0.5}} for seed in (1, 2)]
    config = {"merge_method": "task_arithmetic", "models": names, "dtype": "float32"}
    ours({**config, "base_model": str(own_models / "base")}, tmp_path / "full")
    ours({**config, "base_model": str(own_models / "base")}, tmp_path / "scaled", scale=2.0)
    base, full = weights(own_models / "base"), weights(tmp_path / "full")
    wanted = {name: base[name] + 2 * (full[name] - base[name]) for name in base}
    assert relative_error(weights(tmp_path / "scaled"), wanted, base) < 1e-6
    with pytest.raises(UntaxError, match="no common base"):
        ours({**config, "merge_method": "linear"}, tmp_path / "none", scale=0.5)


def test_what_cannot_be_scaled(models: Path, tmp_path: Path) -> None:
    source = {"model": f"{models / 'base'}+{models / 'a0'}"}
    ranges = [{**source, "layer_range": [0, 1]}, {"model": str(models / "base"), "layer_range": [1, 2]}]
    mixed = {"merge_method": "linear", "slices": [{"sources": ranges}], "parameters": {"weight": 0.5}}
    with pytest.raises(UntaxError, match="comes from 2 tensors of the base"):
        ours(mixed, tmp_path / "mixed", scale=0.5)
    with pytest.raises(UntaxError, match="makes a tokenizer cannot be scaled"):
        ours(configuration(models, "linear", tokenizer_source="base"), tmp_path / "tokens", scale=0.5)


def test_scaled_slices(models: Path, tmp_path: Path) -> None:
    """Output layer 1 is layer 0 of the base, and is scaled against that one."""
    source = {"model": f"{models / 'base'}+{models / 'a0'}"}
    slices = [{"sources": [{**source, "layer_range": [number, number + 1]}]} for number in (1, 0)]
    ours({"merge_method": "passthrough", "slices": slices, "dtype": "float32"}, tmp_path / "out", scale=0.0)
    base, found = weights(models / "base"), weights(tmp_path / "out")
    name = "model.layers.{}.mlp.up_proj.weight"
    assert found[name.format(0)].equal(base[name.format(1)])
    assert found[name.format(1)].equal(base[name.format(0)])


def test_tensor_that_an_adapter_changes_and_mergekit_does_not_know(own_models: Path, tmp_path: Path) -> None:
    """mergekit's Llama has no attention bias: it would drop what the adapter trained there."""
    folder = tmp_path / "biased"
    base = make_base(folder / "base", own_models / "base", attention_bias=True)
    make_adapter(base, folder / "a0", seed=3, lora_bias=True, target_modules=["q_proj"])
    make_adapter(base, folder / "a1", seed=3, target_modules=["q_proj"])
    with pytest.raises(UntaxError, match=r"lose 2 tensors .*self_attn\.q_proj\.bias"):
        ours(configuration(folder, "linear"), tmp_path / "out")
    missing = ours(configuration(folder, "linear", ("a1",)), tmp_path / "without")
    assert "model.layers.0.self_attn.q_proj.bias" in missing


@pytest.fixture(autouse=True)
def nothing_is_kept() -> Iterator[None]:
    from mergekit.io.tasks import LoaderCache

    LoaderCache().loaders.clear()
    yield
    LoaderCache().loaders.clear()
