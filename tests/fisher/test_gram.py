"""Grams against X^T X of hooks on one text at a time in float64, and what is shared, padded or refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import untax
from untax.adapters.gram import Grams
from untax.errors import UntaxError
from untax.fisher.gram import Found, Made, gram, grams
from untax.fisher.inputs import Data, Reading
from untax.fisher.model import Model
from untax.fisher.sequences import TokenSequence
from untax.fisher.weights import weights_of
from untax.manifest import changed_outputs, digest_model, read_manifest

from .networks import gpt2, llama, sequences, shapes


def found_in(network: Any, samples: Sequence[TokenSequence], **options: Any) -> Found:
    return grams(network, weights_of(network, "linear", shapes(network), where="toy"), samples, **options)


def naive(network: Any, samples: Sequence[TokenSequence]) -> dict[str, Any]:
    """The definition: every linear layer by itself, in float64, one unpadded text at a time."""
    import torch

    network = copy.deepcopy(network).double()
    total: dict[str, Any] = {}
    for weight in weights_of(network, "linear", shapes(network), where="toy"):
        for layer in weight.layers:

            def hook(layer: Any, arguments: Any, output: Any, name: str = weight.name) -> None:
                rows = arguments[0].reshape(-1, arguments[0].shape[-1])
                total[name] = total.get(name, 0) + rows.T @ rows

            layer.register_forward_hook(hook)
    for sample in samples:
        with torch.no_grad():
            network(input_ids=torch.tensor([sample.ids]), use_cache=False)
    tokens = sum(len(sample.ids) for sample in samples)
    return {name: value / tokens for name, value in total.items()}


def whole(found: Found) -> dict[str, Any]:
    """Every weight's Gram, shared ones too."""
    return {**found.grams, **{name: found.grams[owner] for name, owner in found.owners.items()}}


def assert_same(found: dict[str, Any], expected: dict[str, Any], *, relative: float = 1e-5) -> None:
    """Each element up to ``relative`` of the squares on the diagonal that bound it."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        wanted = expected[name].double()
        bound = (wanted.diagonal()[:, None] * wanted.diagonal()).sqrt()
        error = (value.double() - wanted).abs()
        assert bool((error <= relative * bound + 1e-30).all()), f"{name}: {(error / bound).max().item()}"


@pytest.mark.parametrize(
    ("make", "options"), [(llama, {}), (llama, {"tied": True}), (llama, {"bias": True}), (gpt2, {})]
)
def test_it_is_x_transposed_x(make: Any, options: dict[str, Any]) -> None:
    """With padding in every pass, and for GPT-2's weights, which lie the other way round."""
    network, samples = make(**options), sequences(9, 5, 12, 2, 9, 7)
    found = found_in(network, samples, batch_tokens=60)
    assert found.never_ran == ()
    assert_same(whole(found), naive(network, samples))
    assert all(value.shape == (value.shape[0],) * 2 for value in found.grams.values())


def test_the_sums_are_as_exact_as_said() -> None:
    """In fp64, and in fp32 where that would take too much memory."""
    import torch

    network, samples = llama(), sequences(*[7] * 300)
    expected = naive(network, samples)
    wide, narrow = (found_in(network, samples, batch_tokens=7, wide_bytes=size) for size in (1 << 30, 0))
    assert {value.dtype for value in wide.grams.values()} == {torch.float64}
    assert {value.dtype for value in narrow.grams.values()} == {torch.float32}
    assert_same(whole(wide), expected, relative=2e-6)
    assert_same(whole(narrow), expected, relative=2e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(2, 20), min_size=1, max_size=8), st.integers(1, 200))
def test_batches_and_padding_change_nothing_but_rounding(lengths: list[int], batch_tokens: int) -> None:
    network, samples = llama(), sequences(*lengths)
    assert_same(
        whole(found_in(network, samples, batch_tokens=batch_tokens)),
        whole(found_in(network, samples, batch_tokens=1)),
    )


def test_layers_that_read_one_tensor_share() -> None:
    found = found_in(llama(), sequences(9, 5))
    for layer in (0, 1):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        assert found.owners[f"{attention}.k_proj.weight"] == f"{attention}.q_proj.weight"
        assert found.owners[f"{attention}.v_proj.weight"] == f"{attention}.q_proj.weight"
        assert found.owners[f"{mlp}.up_proj.weight"] == f"{mlp}.gate_proj.weight"
    assert len(found.owners) == 6
    assert len(found.grams) == 8
    assert found_in(gpt2(), sequences(9, 5)).owners == {}


# Layers that are used in other ways than once for each token of each sequence


def toy(kind: str) -> Any:
    import torch

    class Toy(torch.nn.Module):
        """``first`` and ``second`` read the same, or not, or sometimes, as the kind says."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.embed = torch.nn.Embedding(40, 8)
            self.first, self.second, self.third = (torch.nn.Linear(8, 8, bias=False) for _ in range(3))
            self.head = torch.nn.Linear(8, 40, bias=False)
            self.device, self.base_model_prefix = torch.device("cpu"), "model"
            if kind == "tied":
                self.second.weight = self.first.weight

        def get_output_embeddings(self) -> Any:
            return self.head

        def get_input_embeddings(self) -> Any:
            return self.embed

        def forward(self, input_ids: Any, use_cache: bool = False) -> Any:
            hidden = self.embed(input_ids).cumsum(dim=1)
            long = input_ids.shape[1] > 6
            if kind == "experts":
                flat = hidden.reshape(-1, 8)
                chosen = flat[:, 0] > 0
                mixed = torch.zeros_like(flat)
                mixed[chosen] = self.first(flat[chosen])
                mixed[~chosen] = self.second(flat[~chosen]) + self.third(flat[~chosen])
                hidden = mixed.reshape(hidden.shape)
            elif kind == "together":
                hidden = self.third((self.first(hidden) + self.second(hidden)).tanh())
            elif kind == "sometimes":
                # Shared in long passes only, which come first.
                hidden = self.first(hidden) + self.second(hidden if long else hidden.tanh())
            elif kind == "skipped":
                hidden = self.first(hidden) + (self.second(hidden) if long else 0)
            elif kind == "late":
                # `third` joins when the others have seen something already.
                hidden = self.first(hidden) + self.second(hidden) + (0 if long else self.third(hidden))
            elif kind == "twice":
                hidden = self.first(hidden) + self.second(hidden) + self.first(hidden.tanh())
            elif kind == "changed":
                one = self.first(hidden)
                hidden = one + self.second(hidden.mul_(2))
            elif kind == "heads":
                hidden = self.second(self.first(hidden.unsqueeze(2).expand(-1, -1, 3, -1)).sum(2))
            elif kind == "tied":
                hidden = self.second(self.first(hidden).tanh()) + self.third(hidden)
            else:
                hidden = self.first(hidden)
            return SimpleNamespace(logits=self.head(hidden.tanh()))

    return Toy().eval().requires_grad_(False)


KINDS = {
    "experts": {},
    "together": {"second.weight": "first.weight"},
    "sometimes": {},
    "skipped": {},
    "late": {"second.weight": "first.weight"},
    "twice": {},
    "changed": {},
    "heads": {},
    "tied": {},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_tokens", [1, 30])
def test_other_ways_to_use_a_layer(kind: str, batch_tokens: int) -> None:
    # No pass has texts of more than six tokens and of fewer.
    network, samples = toy(kind), sequences(9, 5, 12, 3, 8, 11, 4, 10)
    told: list[int] = []
    found = found_in(network, samples, batch_tokens=batch_tokens, done=told.append)
    expected = naive(network, samples)
    for name in found.never_ran:
        expected[name] = found.grams[name]
    assert_same(whole(found), expected)
    assert {name: owner for name, owner in found.owners.items() if name != "third.weight"} == KINDS[kind]
    assert sum(told) == len(samples)


def test_a_layer_that_never_runs_has_zeros() -> None:
    found = found_in(toy("first alone"), sequences(9, 5))
    assert found.never_ran == ("second.weight", "third.weight")
    assert not found.grams["second.weight"].any()
    assert found.grams["first.weight"].any()


def test_the_network_is_as_before() -> None:
    network = llama()
    found_in(network, sequences(5, 3))
    assert not any(module._forward_hooks for module in network.modules())


def test_nan_names_the_layer_and_the_text() -> None:
    network = llama()
    network.model.embed_tokens.weight[39] = float("nan")
    samples = [TokenSequence(position, (1, 2, 39 if position == 17 else 4, 5), 1) for position in range(15, 20)]
    with pytest.raises(UntaxError, match=r"goes into model.layers.0.mlp.down_proj.weight and 7 more layers") as error:
        found_in(network, samples)
    assert "text 17 of the data" in str(error.value)
    assert not any(module._forward_hooks for module in network.modules())


# From model and data to the file


STORIES = [f"One day, a girl named Lily found {count} red balls in the park." for count in range(9)]


@pytest.fixture
def data(tmp_path: Path) -> Data:
    (tmp_path / "stories.txt").write_text("\n\n".join(STORIES))
    return Data(tmp_path / "stories.txt", prompt=lambda row: "")


def make(base: Path, data: Data, out: Path, **options: Any) -> Made:
    told: list[str] = []
    reading = Reading(samples=len(STORIES), sequence_len=12)
    made = gram(Model(str(base), base), data, out, reading, device="cpu", say=told.append, **options)
    assert not any("Warning" in text for text in told)
    return made


def test_the_file_has_the_grams_of_the_texts(base_model: Path, data: Data, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = make(base_model, data, tmp_path / "g.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    samples = [TokenSequence(0, tuple(tokenizer(text).input_ids[:12]), 1) for text in STORIES]
    stored = Grams(made.path)
    expected = naive(AutoModelForCausalLM.from_pretrained(base_model), samples)
    assert_same({name: stored.gram(name) for name in stored.names}, expected)
    assert (made.layers, made.grams, made.samples) == (35, 20, len(STORIES))
    assert made.tokens == sum(len(one.ids) for one in samples)


def test_the_file_says_how_it_was_made(base_model: Path, data: Data, tmp_path: Path) -> None:
    made = make(base_model, data, tmp_path / "g.safetensors")
    told = Grams(made.path).metadata
    assert (
        told.items()
        >= {
            "what": "gram",
            "base": digest_model(base_model),
            "tokens": str(made.tokens),
            "sequence_len": "12",
            "seed": "42",
            "dtype": "float32",
            "untax": untax.__version__,
        }.items()
    )
    assert "X^T X" in told["definition"]
    assert json.loads(told["transposed"]) == []
    manifest = read_manifest(tmp_path, "g.untax.json")
    assert manifest is not None
    assert (manifest["what"], manifest["seed"]) == ("gram", 42)
    assert changed_outputs(tmp_path, manifest) == []
    assert manifest["inputs"].keys() == {"base", "data", "token_ids"}
    again = make(base_model, data, tmp_path / "again.safetensors")
    assert again.path.read_bytes() == made.path.read_bytes()


def test_weights_that_lie_the_other_way_round_are_named(tmp_path: Path, data: Data, base_model: Path) -> None:
    """GPT-2, whose checkpoint lacks the prefix of the loaded model."""
    import shutil

    from transformers import GPT2Config, GPT2LMHeadModel

    network = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_positions=64, n_embd=16, n_layer=1, n_head=2))
    network.transformer.save_pretrained(tmp_path / "gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base_model / name, tmp_path / "gpt2" / name)
    made = make(tmp_path / "gpt2", data, tmp_path / "g.safetensors")
    stored = Grams(made.path)
    assert stored.names == tuple(
        f"h.0.{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    )
    assert all(stored.is_transposed(name) for name in stored.names)
    stored.check("h.0.mlp.c_proj.weight", 64)
    assert stored.gram("h.0.mlp.c_proj.weight").shape == (64, 64)


def test_an_output_that_is_there_stays_unless_forced(base_model: Path, data: Data, tmp_path: Path) -> None:
    (tmp_path / "g.safetensors").write_bytes(b"mine")
    with pytest.raises(UntaxError, match="there already"):
        make(base_model, data, tmp_path / "g.safetensors")
    assert (tmp_path / "g.safetensors").read_bytes() == b"mine"
    make(base_model, data, tmp_path / "g.safetensors", force=True)
    assert Grams(tmp_path / "g.safetensors").names
