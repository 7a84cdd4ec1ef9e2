"""An adapter made of adapters, loaded by PEFT itself, against the float64 sum of what PEFT makes of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tiny_adapters import peft_gpt2, write_adapter, write_model
from toys import BASE
from untax.adapters.base import StoredModel
from untax.adapters.header import read_header
from untax.adapters.stored import StoredAdapter
from untax.errors import UntaxError
from untax.merge.as_adapter import write_combined
from untax.merge.recompress import Combined

from .tiny_models import make_adapter, make_base

MIXED: list[dict[str, Any]] = [
    {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 8},
    {"r": 2, "lora_alpha": 6, "use_rslora": True},
    {
        "target_modules": ["q_proj", "up_proj", "down_proj"],
        "rank_pattern": {"q_proj": 3, r"layers\.1\..*up_proj": 5},
        "alpha_pattern": {"down_proj": 1},
    },
]
# Adapters, the base's configuration, and whether the base must be at hand.
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "ranks, scales, rsLoRA, patterns, layers": (MIXED, {}),
    "embedding and output layer": (
        [{"target_modules": ["embed_tokens", "lm_head", "q_proj"]}, {"target_modules": ["embed_tokens"], "r": 3}, {}],
        {},
    ),
    "modules_to_save": (
        [{"modules_to_save": ["lm_head", "norm"]}, {"target_modules": ["lm_head", "q_proj"]}, {}],
        {},
    ),
    "saved embedding": (
        [{"modules_to_save": ["embed_tokens"]}, {"target_modules": ["embed_tokens", "v_proj"], "r": 2}, {}],
        {},
    ),
    "biases": (
        [{"bias": "all", "target_modules": ["q_proj"]}, {"bias": "all", "r": 2}, {"target_modules": ["v_proj"]}],
        {"attention_bias": True, "mlp_bias": True},
    ),
}
WEIGHTS = [0.5, -0.3, 1.1]


def write(out: Path, folders: Sequence[Path], coefficients: Any = WEIGHTS, **options: Any) -> Combined:
    given = coefficients if callable(coefficients) else lambda tensor: coefficients
    out.mkdir()
    base = options.pop("base", None)
    stored = None if base is None else StoredModel(base)
    adapters = [StoredAdapter(folder) for folder in folders]
    scale = options.pop("scale", 1.0)
    return write_combined([out], adapters, given, scales=[scale], base=stored, base_name=str(base or "b"), **options)


def state(base: Path, adapter: Path | None = None) -> dict[str, Any]:
    """A model's tensors in float64, with an adapter merged by PEFT."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base).double()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).double().merge_and_unload()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def summed(base: Path, folders: Sequence[Path], coefficients: Callable[[str], Sequence[float]]) -> dict[str, Any]:
    """base + sum of c_k * (what PEFT makes of adapter k - base) in float64."""
    original, merged = state(base), [state(base, folder) for folder in folders]
    return {
        name: tensor + sum(c * (other[name] - tensor) for c, other in zip(coefficients(name), merged, strict=True))
        for name, tensor in original.items()
    }


def assert_equal(found: Mapping[str, Any], wanted: Mapping[str, Any], tolerance: float = 1e-6) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        error = float((found[name] - tensor).abs().max())
        assert error < tolerance * max(1.0, float(tensor.abs().max())), f"{name}: {error}"


def load_report(base: Path, adapter: Path) -> tuple[list[str], list[str]]:
    """(missing, unexpected) keys when PEFT loads the adapter."""
    import peft
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.PeftModel(model, peft.PeftConfig.from_pretrained(adapter))
    result = adapted.load_adapter(adapter, "default")
    return list(result.missing_keys), list(result.unexpected_keys)


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(torch.arange(1, 25).reshape(2, 12)).logits


def logits_with(base: Path, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter))


def logits_of(base: Path, tensors: Mapping[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return logits(model)


@pytest.mark.parametrize("case", CASES)
def test_peft_makes_of_it_what_it_makes_of_all(case: str, tmp_path: Path) -> None:
    kinds, changes = CASES[case]
    base = make_base(tmp_path / "base", BASE, **changes)
    folders = [make_adapter(base, tmp_path / f"a{k}", seed=k, **kind) for k, kind in enumerate(kinds)]
    found = write(tmp_path / "out", folders, base=base, scale=0.7)
    wanted = summed(base, folders, lambda tensor: [0.7 * c for c in WEIGHTS])
    assert load_report(base, tmp_path / "out") == ([], [])
    assert_equal(state(base, tmp_path / "out"), wanted)
    expected, out = logits_of(base, wanted), logits_with(base, tmp_path / "out")
    assert float((expected - out).abs().max()) < 1e-5 * float(expected.abs().max())
    assert found.error == 0.0
    assert found.rank == max(layer.full_rank for layer in found.layers)


def test_gpt2_whose_weights_lie_the_other_way_round(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=4)).save_pretrained(
        base := tmp_path / "base"
    )
    kinds = [
        {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "bias": "all"},
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "r": 2},
        {"target_modules": ["c_fc"], "fan_in_fan_out": True, "modules_to_save": ["h.1.mlp.c_proj"]},
    ]
    folders = [make_adapter(base, tmp_path / f"a{k}", seed=k, **kind) for k, kind in enumerate(kinds)]
    write(tmp_path / "out", folders, base=base)
    config = saved_config(tmp_path / "out")
    assert (config["fan_in_fan_out"], config["bias"]) == (True, "all")
    assert config["modules_to_save"] == ["transformer.h.1.mlp.c_proj"]
    assert load_report(base, tmp_path / "out") == ([], [])
    assert_equal(state(base, tmp_path / "out"), summed(base, folders, lambda tensor: WEIGHTS))


def test_coefficients_are_asked_for_by_the_names_of_the_checkpoint(tmp_path: Path) -> None:
    base, folder = peft_gpt2(tmp_path)  # without the prefix that the model's class puts in front
    asked: list[str] = []
    write(tmp_path / "out", [folder], lambda tensor: asked.append(tensor) or [0.5], base=base)
    assert asked
    assert set(asked) <= StoredModel(base).tensors.keys()


def test_factors_are_added_to_a_module_that_another_adapter_saves(tmp_path: Path) -> None:
    """Transposed or not: the tensor of a Conv1D that one adapter has whole and another one as factors."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=1, n_head=4)
    GPT2LMHeadModel(config).save_pretrained(base := tmp_path / "base")
    kinds = [
        {"target_modules": ["c_attn"], "fan_in_fan_out": True, "modules_to_save": ["c_fc", "attn.c_proj"]},
        {"target_modules": ["c_fc", "attn.c_proj"], "fan_in_fan_out": True},
    ]
    folders = [make_adapter(base, tmp_path / f"a{k}", seed=k, **kind) for k, kind in enumerate(kinds)]
    write(tmp_path / "out", folders, [1.0, 0.4])
    assert load_report(base, tmp_path / "out") == ([], [])
    assert_equal(state(base, tmp_path / "out"), summed(base, folders, lambda tensor: [1.0, 0.4]))


def test_coefficients_that_differ_by_tensor(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", BASE)
    folders = [make_adapter(base, tmp_path / f"a{k}", seed=k) for k in range(2)]

    def coefficients(tensor: str) -> list[float]:
        return [0.0, 0.0] if "layers.1.mlp" in tensor else [0.0, 0.8] if "mlp" in tensor else [1.5, 0.25]

    found = write(tmp_path / "out", folders, coefficients, base=base)
    ranks = {layer.module: layer.rank for layer in found.layers}
    assert ranks["model.layers.0.mlp.up_proj"] == 4
    assert ranks["model.layers.0.self_attn.q_proj"] == 8
    assert not any("layers.1.mlp" in module for module in ranks)
    assert load_report(base, tmp_path / "out") == ([], [])
    assert_equal(state(base, tmp_path / "out"), summed(base, folders, coefficients))


def test_the_configuration(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", BASE)
    folders = [make_adapter(base, tmp_path / f"a{k}", seed=k, **kind) for k, kind in enumerate(MIXED)]
    written: list[int] = []
    found = write(tmp_path / "out", folders, base=base, base_revision="abc", progress=written.append)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    modules = [layer.module for layer in found.layers]
    assert config["target_modules"] == modules == sorted(modules)
    assert (config["base_model_name_or_path"], config["revision"]) == (str(base), "abc")
    assert (config["use_rslora"], config["inference_mode"], config["task_type"]) == (False, True, "CAUSAL_LM")
    assert config["r"] == config["lora_alpha"] == 2
    assert config["rank_pattern"] == config["alpha_pattern"]
    adapter = StoredAdapter(tmp_path / "out")
    assert {layer.scale for layer in adapter.layers} == {1.0}
    assert {layer.module: adapter.tensors[layer.down].shape[0] for layer in adapter.layers} == {
        layer.module: layer.full_rank for layer in found.layers
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert sum(written) == 4 * found.elements
    assert sum(written) == sum(info.stop - info.start for info in adapter.tensors.values())
    from safetensors import safe_open

    with safe_open(tmp_path / "out/adapter_model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_pattern_matches_one_module_only(tmp_path: Path) -> None:
    import torch
    from peft.utils.other import get_pattern_key

    def factors(rank: int) -> tuple[Any, Any]:
        return torch.ones(3, rank), torch.ones(rank, 2)

    one = write_adapter(tmp_path / "a", {name: factors(1) for name in ("head", "x.head", "hxad", "y", "z")})
    two = write_adapter(tmp_path / "b", {name: factors(2) for name in ("head", "h.ad")}, r=2)
    write(tmp_path / "out", [one, two], [1.0, 1.0])
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    patterns = config["rank_pattern"]
    ranks = {
        name: patterns.get(get_pattern_key(patterns, name), config["r"])
        for name in ("head", "x.head", "h.ad", "hxad", "y")
    }
    assert ranks == {"head": 3, "x.head": 1, "h.ad": 2, "hxad": 1, "y": 1}
    assert len(StoredAdapter(tmp_path / "out").layers) == 6  # refused where ranks and configuration differ


@pytest.mark.parametrize("rank", [2, 5])
def test_rank_is_the_dense_truncation(rank: int, tmp_path: Path) -> None:
    import numpy as np

    base = make_base(tmp_path / "base", BASE)
    kinds = [{"target_modules": ["embed_tokens", "lm_head", "up_proj"], "r": 3}, {"r": 4}]
    folders = [make_adapter(base, tmp_path / f"a{k}", seed=k, **kind) for k, kind in enumerate(kinds)]
    found = write(tmp_path / "out", folders, [0.5, 0.5], base=base, rank=rank)
    exact, cut = (dict(StoredAdapter(path).deltas()) for path in (_exact(tmp_path, folders, base), tmp_path / "out"))
    lost = size = 0.0
    for layer in found.layers:
        delta = exact[f"{layer.module}.weight"].double().numpy()
        left, values, right = np.linalg.svd(delta, full_matrices=False)
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        assert np.linalg.norm(cut[f"{layer.module}.weight"].double().numpy() - best) < 1e-5 * np.linalg.norm(delta)
        assert layer.error == pytest.approx(np.linalg.norm(best - delta) / np.linalg.norm(delta), abs=1e-6)
        assert (layer.rank, layer.norm) == (min(rank, layer.full_rank), pytest.approx(np.linalg.norm(delta)))
        lost, size = lost + float(((best - delta) ** 2).sum()), size + float((delta**2).sum())
    assert found.error == pytest.approx((lost / size) ** 0.5, abs=1e-6)
    assert found.error > 0.01
    assert any(layer.error == 0 for layer in found.layers) == (rank == 5)
    assert load_report(base, tmp_path / "out") == ([], [])


def _exact(folder: Path, folders: Sequence[Path], base: Path) -> Path:
    write(folder / "exact", folders, [0.5, 0.5], base=base)
    return folder / "exact"


@pytest.mark.parametrize("kind", ["cat", "linear", "svd"])
def test_peft_itself_is_not_exact(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = make_base(tmp_path / "base", BASE)
    same = {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj"]}
    folders = [make_adapter(base, tmp_path / f"a{k}", seed=k, **same) for k in range(2)]
    wanted, before = summed(base, folders, lambda tensor: [0.5, 0.5]), state(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base).double(), folders[0], "a0").double()
    model.load_adapter(folders[1], "a1")
    model.double().add_weighted_adapter(["a0", "a1"], [0.5, 0.5], "both", combination_type=kind)
    model.set_adapter("both")
    theirs = model.double().merge_and_unload().state_dict()
    write(tmp_path / "out", folders, [0.5, 0.5], base=base)
    ours = state(base, tmp_path / "out")
    name = "model.layers.0.self_attn.q_proj.weight"
    size = float((wanted[name] - before[name]).norm())
    assert float((theirs[name] - wanted[name]).norm()) > 0.1 * size
    assert float((ours[name] - wanted[name]).norm()) < 1e-6 * size


def test_keys_that_checkpointing_and_compiling_wrapped_are_written_clean(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = make_base(tmp_path / "base", BASE)
    plain = [make_adapter(base, tmp_path / f"a{k}", seed=k) for k in range(2)]
    wrapped = Path(shutil.copytree(plain[1], tmp_path / "wrapped"))
    file = wrapped / "adapter_model.safetensors"
    keys = {
        key: key.replace(".mlp.", "._checkpoint_wrapped_module.mlp.").replace(".self_attn.", "._orig_mod.self_attn.")
        for key in load_file(file)
    }
    save_file({keys[key]: tensor for key, tensor in load_file(file).items()}, file)
    write(tmp_path / "out", [plain[0], wrapped], [0.5, 0.5])
    write(tmp_path / "wanted", plain, [0.5, 0.5])
    weights = "adapter_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (tmp_path / "wanted" / weights).read_bytes()


# What is refused


def changed(folder: Path, to: Path, config: dict[str, Any] | None = None, **tensors: Any) -> Path:
    """A copy with other keys in its configuration, and more tensors."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, to)
    path = to / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    file = to / "adapter_model.safetensors"
    save_file(load_file(file) | tensors, file)
    return to


def refused(tmp_path: Path, folders: Sequence[Path], coefficients: Any = (0.5, 0.5), **options: Any) -> str:
    with pytest.raises(UntaxError) as caught:
        write(tmp_path / "out", folders, coefficients, **options)
    assert caught.value.where
    assert caught.value.fix
    return str(caught.value)


@pytest.fixture
def simple(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "simple", {"m": ([[1.0], [2.0]], [[3.0, 4.0, 5.0]])})


def test_dora_is_refused_by_its_key(models: Path, tmp_path: Path) -> None:
    dora = make_adapter(models / "base", tmp_path / "dora", seed=1, use_dora=True)
    message = refused(tmp_path, [models / "a0", dora])
    assert "lora_magnitude_vector" in message
    assert "into a model" in message


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"alora_invocation_tokens": [1]}, "alora"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ],
)
def test_what_is_no_fixed_change_is_refused(config: dict[str, Any], problem: str, simple: Path, tmp_path: Path) -> None:
    assert problem in refused(tmp_path, [simple, changed(simple, tmp_path / "other", config)])


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("base_model.model.m.bias", "m.bias"),
        ("base_model.model.m.lora_B.bias", "lora_B.bias"),
        ("base_model.model.m.token_adapter.trainable_tokens_delta", "trainable_tokens_delta"),
        ("base_model.model.other.weight", "other.weight"),
    ],
)
def test_a_key_without_a_place_is_refused(key: str, problem: str, simple: Path, tmp_path: Path) -> None:
    import torch

    base = write_model(tmp_path / "base", {"m.weight": torch.zeros(2, 3), "other.weight": torch.zeros(2)})
    other = changed(simple, tmp_path / "other", None, **{key: torch.ones(2)})
    assert problem in refused(tmp_path, [simple, other], base=base)


def test_factors_of_another_shape_are_refused(simple: Path, tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "other", {"m": ([[1.0], [2.0]], [[3.0, 4.0]])})
    assert "base_model.model.m.lora_A.weight" in refused(tmp_path, [simple, other])


def test_integers_are_refused(simple: Path, tmp_path: Path) -> None:
    import torch

    factors = {"m": (torch.ones(2, 1, dtype=torch.int8), torch.ones(1, 3))}
    assert "I8" in refused(tmp_path, [simple, write_adapter(tmp_path / "other", factors)])


@pytest.mark.parametrize("rank", [None, 3])
def test_scales_in_one_call_share_the_factors(
    rank: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from untax.merge import as_adapter

    base = make_base(tmp_path / "base", BASE)
    kinds: list[dict[str, Any]] = [{"modules_to_save": ["lm_head"]}, {"use_rslora": True}]
    folders = [make_adapter(base, tmp_path / f"a{k}", seed=k, **kind) for k, kind in enumerate(kinds)]
    scales = (1.0, 0.5, -2.0)
    for scale in scales:
        write(tmp_path / f"alone {scale}", folders, [0.5, 0.2], base=base, rank=rank, scale=scale)
    computed: list[str] = []
    stock = as_adapter.combine
    monkeypatch.setattr(as_adapter, "combine", lambda module, *rest: (computed.append(module), stock(module, *rest))[1])
    outs = [tmp_path / f"together {scale}" for scale in scales]
    for out in outs:
        out.mkdir()
    adapters = [StoredAdapter(folder) for folder in folders]
    found = as_adapter.write_combined(
        outs, adapters, lambda _: [0.5, 0.2], rank=rank, scales=scales, base=StoredModel(base), base_name=str(base)
    )
    assert sorted(computed) == sorted(layer.module for layer in found.layers)
    for out, scale in zip(outs, scales, strict=True):
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            assert (out / name).read_bytes() == (tmp_path / f"alone {scale}" / name).read_bytes()


@pytest.mark.parametrize(("coefficients", "options"), [([0.0, 0.0], {}), ([1.0, 1.0], {"rank": 0})])
def test_an_empty_adapter_is_refused(coefficients: Any, options: Any, simple: Path, tmp_path: Path) -> None:
    refused(tmp_path, [simple, simple], coefficients, **options)


def test_saved_modules_need_the_base_only_where_it_matters(tmp_path: Path) -> None:
    import torch

    def saving(name: str, value: float) -> Path:
        whole = {"base_model.model.head.weight": torch.full((2,), value)}
        factors = {"m": ([[1.0]], [[1.0]])}
        return write_adapter(tmp_path / name, factors, whole, modules_to_save=["head"])

    one, two = saving("one", 2.0), saving("two", 4.0)
    base = write_model(tmp_path / "base", {"m.weight": torch.zeros(1, 1), "head.weight": torch.ones(2)})
    assert "head.weight" in refused(tmp_path, [one, two], [0.25, 0.25])
    shutil.rmtree(tmp_path / "out")
    assert write(tmp_path / "half", [one, two], [0.25, 0.25], base=base).replaced == ("head.weight",)
    write(tmp_path / "average", [one, two], [0.5, 0.5])
    assert 49 * (1 / 49) != 1
    write(tmp_path / "rounded", [one] * 49, [1 / 49] * 49)
    write(tmp_path / "without", [one, two], lambda tensor: [0.0, 0.0] if "head" in tensor else [0.5, 0.5])
    key = "base_model.model.head.weight"
    assert saved_values(tmp_path / "half")[key] == pytest.approx(1 + 0.25 * 1 + 0.25 * 3)
    assert saved_values(tmp_path / "average")[key] == pytest.approx(3.0)
    assert saved_values(tmp_path / "rounded")[key] == pytest.approx(2.0)
    assert saved_config(tmp_path / "half")["modules_to_save"] == ["head"]
    assert key not in saved_values(tmp_path / "without")
    assert saved_config(tmp_path / "without")["modules_to_save"] is None


def saved_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def saved_values(folder: Path) -> dict[str, float]:
    from safetensors.torch import load_file

    return {key: float(tensor.mean()) for key, tensor in load_file(folder / "adapter_model.safetensors").items()}


def test_a_copy_of_the_base_must_be_one(tmp_path: Path) -> None:
    import torch

    key = "base_model.model.embed_tokens.base_layer.weight"
    factors = {"base_model.model.embed_tokens.lora_embedding_A": torch.ones(1, 3)}
    factors["base_model.model.embed_tokens.lora_embedding_B"] = torch.ones(2, 1)
    folder = write_adapter(tmp_path / "a", {}, factors | {key: torch.ones(3, 2)})
    same = write_model(tmp_path / "same", {"embed_tokens.weight": torch.ones(3, 2)})
    other = write_model(tmp_path / "other", {"embed_tokens.weight": torch.zeros(3, 2)})
    write(tmp_path / "good", [folder], [1.0], base=same)
    assert set(read_header(tmp_path / "good/adapter_model.safetensors")) == factors.keys()
    assert "not at hand" in refused(tmp_path, [folder], [1.0])
    (tmp_path / "out").rmdir()
    assert key in refused(tmp_path, [folder], [1.0], base=other)
