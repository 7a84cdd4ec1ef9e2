"""The streaming engine as a user meets it: merges of real adapters, against float64 and against stock mergekit."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from untax.adapters.base import StoredModel
from untax.adapters.changes import read_changes
from untax.adapters.stored import StoredAdapter
from untax.errors import UntaxError
from untax.manifest import read_manifest
from untax.merge import stream_merge

from .test_stock import inputs, method, stock
from .tiny_models import Config, linear, make_adapter, make_base, relative_error, untax_merge, weights

Tensors = Mapping[str, torch.Tensor]


@pytest.fixture(scope="module")
def bf16(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """The same models in bfloat16, with deltas as small as those of a real fine-tuning."""
    root = tmp_path_factory.mktemp("bf16")
    shutil.copytree(models, root, dirs_exist_ok=True)
    narrow(root / "base/model.safetensors", torch.bfloat16)
    for name in ("a0", "a1"):
        file = root / name / "adapter_model.safetensors"
        small = {key: value * 0.1 for key, value in load_file(file).items()}
        save_file(small, file, metadata={"format": "pt"})
        name_base(root / name, root / "base")
    return root


def name_base(adapter: Path, base: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))


def narrow(file: Path, dtype: torch.dtype) -> None:
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})


def exact_deltas(folder: Path, names: tuple[str, ...] = ("a0", "a1")) -> list[dict[str, torch.Tensor]]:
    """In float64, computed here: every tensor of the base, s * B @ A or zero."""
    found = []
    for name in names:
        config = json.loads((folder / name / "adapter_config.json").read_text())
        factors = load_file(folder / name / "adapter_model.safetensors")
        deltas = {key: torch.zeros(value.shape, dtype=torch.float64) for key, value in weights(folder / "base").items()}
        for key, a in factors.items():
            if key.endswith("lora_A.weight"):
                b = factors[key.replace("lora_A", "lora_B")]
                tensor = key.removeprefix("base_model.model.").replace("lora_A.", "")
                deltas[tensor] = config["lora_alpha"] / config["r"] * (b.double() @ a.double())
        found.append(deltas)
    return found


def exact(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The merge in float64, from the methods' formulas."""
    base = {key: value.double() for key, value in weights(folder / "base").items()}
    one, other = exact_deltas(folder)
    merged = {}
    for key, weight in base.items():
        pair = torch.stack([one[key], other[key]])
        if name == "linear":
            delta = pair.mean(0)
        elif name == "task_arithmetic":
            delta = 0.6 * pair.sum(0)
        elif name == "ties":
            delta = ties(pair, 0.5)
        elif name == "nuslerp":
            delta = spherical(pair[0], pair[1], 0.4) if pair.any() else pair[0]
        else:
            delta = slerp_of(weight + pair[0], weight + pair[1], 0.4) - weight
        merged[key] = weight + delta
    return merged


def ties(pair: torch.Tensor, density: float) -> torch.Tensor:
    trimmed = []
    for delta in pair:
        limit = delta.abs().flatten().sort(descending=True)[0][max(1, int(density * delta.numel())) - 1]
        trimmed.append(torch.where(delta.abs() >= limit, delta, 0.0))
    both = torch.stack(trimmed)
    sign = torch.where(both.sum(0) >= 0, 1.0, -1.0)
    agree = both.sign() == sign
    return (both * agree).sum(0) / agree.sum(0).clamp(min=1)


def spherical(x: torch.Tensor, y: torch.Tensor, t: float) -> torch.Tensor:
    angle = torch.acos((x * y).sum() / (x.norm() * y.norm()))
    return (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)


def slerp_of(x: torch.Tensor, y: torch.Tensor, t: float) -> torch.Tensor:
    cosine = (x * y).sum() / (x.norm() * y.norm())
    return (1 - t) * x + t * y if abs(cosine) > 0.9995 else spherical(x, y, t)


def keys(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    if name == "nuslerp":
        models = [
            {**one, "parameters": {"weight": share}} for one, share in zip(inputs(folder), (0.6, 0.4), strict=True)
        ]
        found = {"merge_method": name, "base_model": str(folder / "base"), "models": models, "dtype": "float32"}
    else:
        found = method(folder, name)
    return {**found, **changes}


DETERMINISTIC = ("linear", "task_arithmetic", "ties", "slerp", "nuslerp")


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_fp32_equals_float64_and_stock_but_for_roundings(
    name: str, models: Path, config: Config, tmp_path: Path
) -> None:
    path = config(**keys(models, name))
    stock(path, tmp_path / "stock", tmp_path / "cache", seed=1)
    untax_merge(path, tmp_path / "ours", engine="stream")
    base, wanted, ours = weights(models / "base"), exact(models, name), weights(tmp_path / "ours")
    assert relative_error(ours, wanted, base) < 1e-6
    assert relative_error(ours, weights(tmp_path / "stock"), base) < 1e-5
    assert set(ours) == set(base)
    assert all(tensor.dtype == torch.float32 for tensor in ours.values())


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_bf16_is_at_least_as_close_to_float64_as_stock(name: str, bf16: Path, config: Config, tmp_path: Path) -> None:
    path = config(**keys(bf16, name, dtype="bfloat16"))
    stock(path, tmp_path / "stock", tmp_path / "cache", seed=1)
    untax_merge(path, tmp_path / "ours", engine="stream")
    base, wanted = weights(bf16 / "base"), exact(bf16, name)
    ours, theirs = weights(tmp_path / "ours"), weights(tmp_path / "stock")
    assert relative_error(ours, wanted, base) <= relative_error(theirs, wanted, base)
    # Rounded once: nothing is nearer to the exact value than what was written, but for a tie or fp32's last digit.
    rounded = {key: value.to(torch.bfloat16) for key, value in wanted.items()}
    differing = sum(int((ours[key] != rounded[key]).sum()) for key in base)
    assert differing <= 2e-3 * sum(value.numel() for value in base.values())


def test_ties_differs_from_stock_in_next_to_no_element(models: Path, config: Config, tmp_path: Path) -> None:
    path = config(**keys(models, "ties"))
    stock(path, tmp_path / "stock", tmp_path / "cache", seed=1)
    untax_merge(path, tmp_path / "ours", engine="stream")
    ours, theirs = weights(tmp_path / "ours"), weights(tmp_path / "stock")
    changed = sum(int(((ours[key] - theirs[key]).abs() > 1e-6).sum()) for key in ours)
    assert changed <= 1e-4 * sum(value.numel() for value in ours.values())


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
def test_dare_drops_its_share_and_keeps_the_norm(name: str, models: Path, config: Config, tmp_path: Path) -> None:
    """One model with weight 1: what is left of its delta is the delta, all multiplied by one number of a tensor."""
    entry = {"model": f"{models / 'base'}+{models / 'a0'}", "parameters": {"weight": 1.0, "density": 0.4}}
    path = config(merge_method=name, base_model=str(models / "base"), models=[entry], dtype="float32")
    untax_merge(path, tmp_path / "out")
    base, (delta,) = weights(models / "base"), exact_deltas(models, ("a0",))
    out = weights(tmp_path / "out")
    left = total = 0
    for key, value in delta.items():
        found = out[key].double() - base[key].double()
        if value.any():
            stays = found.abs() > 1e-12
            ratios = (found / value)[stays & (value.abs() > 0.1)]
            assert float(ratios.max() - ratios.min()) < 1e-4
            assert float(found.abs().sum()) == pytest.approx(float(value.abs().sum()), rel=1e-4)
            left, total = left + int(stays.sum()), total + stays.numel()
        else:
            assert torch.equal(out[key], base[key])
    assert abs(left / total - 0.4) < 5 * (0.24 / total) ** 0.5


@pytest.mark.parametrize("name", ["linear", "ties", "dare_ties"])
def test_same_bytes_for_any_number_of_threads(name: str, bf16: Path, config: Config, tmp_path: Path) -> None:
    path = config(**keys(bf16, name, dtype="bfloat16"))
    for threads in (1, 3):
        untax_merge(path, tmp_path / str(threads), f"--num-threads={threads}")
    assert (tmp_path / "1/model.safetensors").read_bytes() == (tmp_path / "3/model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["linear", "ties", "slerp"])
def test_small_pieces_and_blocks_change_nothing_but_roundings(
    name: str, models: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors of many blocks and pieces, as large ones are."""
    from untax.adapters import blocks
    from untax.merge import pieces

    path = config(**keys(models, name))
    untax_merge(path, tmp_path / "whole")
    monkeypatch.setattr(blocks, "CPU_ELEMENTS", 70)
    monkeypatch.setattr(pieces, "_ELEMENTS", 200)
    monkeypatch.setattr(pieces, "_BYTES", 64)
    untax_merge(path, tmp_path / "cut")
    base = weights(models / "base")
    assert relative_error(weights(tmp_path / "cut"), weights(tmp_path / "whole"), base) < 1e-6


def test_untouched_tensors_are_the_bases_bytes(own_models: Path, config: Config, tmp_path: Path) -> None:
    make_adapter(own_models / "base", own_models / "a0", seed=3, target_modules=["q_proj"])
    models = inputs(own_models, weight=1.0)[:1]
    untax_merge(config(merge_method="linear", models=models), tmp_path / "out")
    base, out = weights(own_models / "base"), weights(tmp_path / "out")
    same = {key for key in base if torch.equal(base[key], out[key])}
    assert same == {key for key in base if "q_proj" not in key}
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest["merge"]["tensors"] == {"changed": 2, "copied": len(base) - 2}
    assert manifest["how"] == {"engine": "stream", "scale": 1.0}


def test_weights_that_do_not_sum_to_one_scale_the_base_too(models: Path, config: Config, tmp_path: Path) -> None:
    path = config(merge_method="linear", models=inputs(models, weight=0.4), parameters={"normalize": False})
    stock(path, tmp_path / "stock", tmp_path / "cache", seed=1)
    untax_merge(path, tmp_path / "ours", engine="stream")
    ours, theirs = weights(tmp_path / "ours"), weights(tmp_path / "stock")
    assert all(torch.allclose(ours[key], theirs[key], rtol=1e-5, atol=1e-7) for key in theirs)
    assert torch.allclose(ours["model.norm.weight"], 0.8 * weights(models / "base")["model.norm.weight"])


@pytest.mark.parametrize(("dtype", "out_dtype", "wanted"), [
    (None, None, torch.bfloat16),
    ("float32", None, torch.float32),
    ("float32", "float16", torch.float16),
    (None, "float16", torch.float16),
])  # fmt: skip
def test_output_dtype(
    dtype: str | None, out_dtype: str | None, wanted: torch.dtype, bf16: Path, config: Config, tmp_path: Path
) -> None:
    untax_merge(config(**keys(bf16, "linear", dtype=dtype, out_dtype=out_dtype)), tmp_path / "out", engine="stream")
    found, own = weights(tmp_path / "out"), exact(bf16, "linear")
    assert {tensor.dtype for tensor in found.values()} == {wanted}
    assert all(torch.allclose(one.double(), own[key], rtol=1e-2, atol=1e-6) for key, one in found.items())
    said = json.loads((tmp_path / "out/config.json").read_text())
    if dtype or out_dtype:
        assert str(wanted) == f"torch.{said.get('dtype') or said.get('torch_dtype')}"


def test_files_as_the_bases_or_as_asked(own_models: Path, config: Config, tmp_path: Path) -> None:
    path = config(**linear(own_models))
    untax_merge(path, tmp_path / "one")
    untax_merge(path, tmp_path / "many", "--out-shard-size=60K")
    shards = sorted(file.name for file in (tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all(file.stat().st_size < 80_000 for file in (tmp_path / "many").glob("*.safetensors"))
    joined: dict[str, torch.Tensor] = {}
    for name in shards:
        joined.update(load_file(tmp_path / "many" / name))
    whole = weights(tmp_path / "one")
    assert joined.keys() == whole.keys()
    assert all(torch.equal(joined[key], whole[key]) for key in whole)
    # A base of several files gives a model of the same files.
    for file in (own_models / "base").glob("model*.safetensors"):
        file.unlink()
    for file in [*(tmp_path / "many").glob("*.safetensors"), tmp_path / "many/model.safetensors.index.json"]:
        shutil.copy(file, own_models / "base" / file.name)
    untax_merge(path, tmp_path / "again", "--allow-crimes")
    assert sorted(file.name for file in (tmp_path / "again").glob("*.safetensors")) == shards
    from transformers import AutoModelForCausalLM

    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"]
    assert loaded.config.num_hidden_layers == 2


@pytest.mark.parametrize("name", ["linear", "ties", "slerp", "dare_linear"])
def test_scales_in_one_call_are_the_same_as_one_by_one(name: str, models: Path, config: Config, tmp_path: Path) -> None:
    path = config(**keys(models, name))
    untax_merge(path, tmp_path / "all", scales=(0.25, 1.0, 1.5))
    assert sorted(folder.name for folder in tmp_path.iterdir() if folder.is_dir()) == ["all", "all-0.25", "all-1.5"]
    base, whole = weights(models / "base"), weights(tmp_path / "all")
    for scale in (0.25, 1.5):
        untax_merge(path, tmp_path / "single", scales=(scale,), force=True)
        out = tmp_path / f"all-{scale:g}"
        assert (out / "model.safetensors").read_bytes() == (tmp_path / "single/model.safetensors").read_bytes()
        wanted = {key: base[key].double() + scale * (whole[key].double() - base[key].double()) for key in base}
        assert relative_error(weights(out), wanted, base) < 1e-5
        manifest = read_manifest(out)
        assert manifest is not None
        assert manifest["merge"]["scale"] == scale


def test_scale_by_mergekit_is_the_same_but_for_roundings(models: Path, config: Config, tmp_path: Path) -> None:
    path = config(**keys(models, "ties"))
    for engine in ("stream", "mergekit"):
        untax_merge(path, tmp_path / engine, engine=engine, scales=(0.3,))
    base = weights(models / "base")
    assert relative_error(weights(tmp_path / "stream"), weights(tmp_path / "mergekit"), base) < 1e-5


@pytest.mark.parametrize(
    "kind",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"bias": "all"},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 3}},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
    ],
    ids=lambda kind: next(iter(kind)),
)
def test_every_kind_of_adapter_as_peft_merges_it(
    kind: dict[str, Any], own_models: Path, config: Config, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    make_adapter(own_models / "base", own_models / "a0", seed=5, **kind)
    models = inputs(own_models, weight=1.0)[:1]
    untax_merge(config(merge_method="linear", models=models), tmp_path / "out", engine="stream")
    model = AutoModelForCausalLM.from_pretrained(own_models / "base", dtype=torch.float32)
    wanted = PeftModel.from_pretrained(model, own_models / "a0").merge_and_unload().state_dict()
    base, out = weights(own_models / "base"), weights(tmp_path / "out")
    assert relative_error(out, wanted, base) < 1e-6
    assert any(not torch.equal(out[key], base[key]) for key in base)


def test_digests_are_those_of_the_files(models: Path, config: Config, tmp_path: Path) -> None:
    untax_merge(config(**linear(models)), tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    for name, digest in manifest["outputs"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest


def test_gradients_and_filters_are_mergekits(models: Path, config: Config, tmp_path: Path) -> None:
    listed = inputs(models)
    listed[0]["parameters"] = {"weight": [{"filter": "mlp", "value": [0.0, 1.0]}, {"value": 0.5}]}
    listed[1]["parameters"] = {"weight": 0.5}
    path = config(merge_method="task_arithmetic", base_model=str(models / "base"), models=listed, dtype="float32")
    stock(path, tmp_path / "stock", tmp_path / "cache", seed=1)
    untax_merge(path, tmp_path / "ours", engine="stream")
    base = weights(models / "base")
    assert relative_error(weights(tmp_path / "ours"), weights(tmp_path / "stock"), base) < 1e-6


def test_nan_in_the_base_is_named(own_models: Path, config: Config, tmp_path: Path) -> None:
    file = own_models / "base/model.safetensors"
    for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight"):
        tensors = load_file(file)
        kept = tensors[name].clone()
        tensors[name].flatten()[3] = float("nan")
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(UntaxError, match=f"The base has NaN or infinity in {name}"):
            untax_merge(config(**linear(own_models)), tmp_path / "out", "--allow-crimes")
        tensors[name] = kept
        save_file(tensors, file, metadata={"format": "pt"})
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "ties_global"])
def test_what_was_merged_is_not_kept_in_memory(
    name: str, tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 60 tensors, the factors of no more are alive at a time than are merged or prepared."""
    import weakref

    from untax.adapters.changes import LowRankChange

    layers = [f"model.layers.{number}.mlp.up_proj" for number in range(60)]
    (tmp_path / "base").mkdir()
    save_file({f"{layer}.weight": torch.randn(8, 8) for layer in layers}, tmp_path / "base/model.safetensors")
    (tmp_path / "base/config.json").write_text(json.dumps({"num_hidden_layers": 60, "tie_word_embeddings": False}))
    (tmp_path / "a").mkdir()
    factors = {
        f"base_model.model.{layer}.lora_{kind}.weight": torch.randn(8, 8) for layer in layers for kind in ("A", "B")
    }
    save_file(factors, tmp_path / "a/adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "base_model_name_or_path": str(tmp_path / "base")}
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(about))
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def counted(stock: Any, result: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal most
            found = stock(*arguments, **options)
            alive.add(result(found))
            most = max(most, len(alive))
            return found

        return call

    monkeypatch.setattr(LowRankChange, "factors", counted(LowRankChange.factors, lambda found: found[1]))
    monkeypatch.setattr(torch, "cat", counted(torch.cat, lambda found: found))
    listed = [{"model": f"{tmp_path / 'base'}+{tmp_path / 'a'}", "parameters": {"weight": 1.0, "density": 0.5}}]
    path = config(merge_method=name, models=listed, base_model=str(tmp_path / "base"))
    untax_merge(path, tmp_path / "out", "--no-copy-tokenizer", "--num-threads=2")
    assert 0 < most < 15


def test_overflow_is_named(own_models: Path, config: Config, tmp_path: Path) -> None:
    path = config(**{**linear(own_models), "out_dtype": "float16"})
    with pytest.raises(UntaxError, match=r"The merged model\.layers.* overflows F16"):
        untax_merge(path, tmp_path / "out", scales=(1e9,))
    assert not (tmp_path / "out").exists()


def test_dry_run_writes_nothing(models: Path, config: Config, tmp_path: Path) -> None:
    said = untax_merge(config(**linear(models)), tmp_path / "out", dry_run=True, scales=(0.5, 1.0))
    assert f"Would write {tmp_path / 'out-0.5'}." in said
    assert any("14 of 21 tensors are changed by adapters" in sentence for sentence in said)
    assert not (tmp_path / "out").exists()


def test_adapter_of_another_base_is_found_when_the_base_is_read(
    own_models: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest of a large base is known only at the end; nothing is published then."""
    from untax.merge import merge

    (own_models / "a0/untax.json").write_text(
        json.dumps({"what": "adapter", "inputs": {"base": "0" * 64}, "outputs": {}})
    )
    reads: list[bool] = []
    monkeypatch.setattr(merge, "model_digest_is_known", lambda path: False)
    original = stream_merge.StreamMerge.write
    monkeypatch.setattr(
        stream_merge.StreamMerge, "write", lambda *arguments: (reads.append(True), original(*arguments))[1]
    )
    with pytest.raises(UntaxError, match="trained on another base"):
        untax_merge(config(**linear(own_models)), tmp_path / "out")
    assert reads == [True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merge.yaml", "models"]


def test_what_is_known_of_an_unread_base(
    own_models: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name is compared before anything is written; a dry run reads the base for its digest."""
    from untax.merge import merge

    monkeypatch.setattr(merge, "model_digest_is_known", lambda path: False)
    monkeypatch.setattr(stream_merge.StreamMerge, "write", lambda *arguments: pytest.fail("something is written"))
    path = config(**linear(own_models))
    name_base(own_models / "a0", Path("some/model"))
    with pytest.raises(UntaxError, match=r"trained on another base \(some/model\)"):
        untax_merge(path, tmp_path / "out")
    name_base(own_models / "a0", own_models / "base")
    manifest = {"what": "adapter", "inputs": {"base": "0" * 64}, "outputs": {}}
    (own_models / "a0/untax.json").write_text(json.dumps(manifest))
    with pytest.raises(UntaxError, match="the name is the same, but not the content"):
        untax_merge(path, tmp_path / "out", dry_run=True)


def test_engine_that_cannot(models: Path, config: Config, tmp_path: Path) -> None:
    path = config(**{**linear(models), "merge_method": "karcher"})
    with pytest.raises(UntaxError, match="cannot be streamed from merge_method karcher"):
        untax_merge(path, tmp_path / "out", engine="stream")


def test_changes_of_a_tied_base_are_refused(tmp_path: Path, models: Path) -> None:
    base = make_base(tmp_path / "tied", models / "base", tie_word_embeddings=True)
    make_adapter(base, tmp_path / "a", seed=1, target_modules=["embed_tokens"])
    with pytest.raises(UntaxError, match="tied"):
        read_changes(StoredAdapter(tmp_path / "a"), StoredModel(base))
