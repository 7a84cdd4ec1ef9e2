"""The estimate against its definition: a loop of autograd over samples in float64, and exact enumeration."""

from __future__ import annotations

import copy
import functools
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from untax.errors import UntaxError
from untax.fisher.estimate import estimate
from untax.fisher.sequences import TokenSequence
from untax.fisher.weights import weights_of

from .networks import assert_same, gpt2, llama, naive, sequences, shapes


def fisher(network: Any, samples: list[TokenSequence], modules: str = "linear", **options: Any) -> dict[str, Any]:
    weights = weights_of(network, modules, shapes(network), where="toy")
    return estimate(network, weights, samples, **options)[0]


@pytest.mark.parametrize("modules", ["linear", "all"])
@pytest.mark.parametrize(
    ("make", "options"), [(llama, {}), (llama, {"tied": True}), (llama, {"bias": True}), (gpt2, {})]
)
def test_it_is_the_mean_of_squared_gradients(make: Any, options: dict[str, Any], modules: str) -> None:
    network = make(**options)
    samples = sequences(9, 5, 12, 2, 9, 7)
    found = fisher(network, samples, modules, batch_tokens=30)
    expected = naive(network, samples)
    assert found.keys() <= expected.keys()
    assert modules == "linear" or found.keys() == expected.keys()
    assert_same(found, expected)


def test_only_scored_tokens_count() -> None:
    network, samples = llama(), sequences(9, 6, start=4)
    assert_same(fisher(network, samples), naive(network, samples))


def test_it_is_not_the_square_of_the_batch_gradient() -> None:
    network, samples = llama(), sequences(6, 6)
    twice = [samples[0], samples[0]]
    assert_same(fisher(network, twice), naive(network, samples[:1]))
    one, two, both = (fisher(network, some) for some in (samples[:1], samples[1:], samples))
    assert_same(both, {name: (one[name] + two[name]) / 2 for name in one})


@functools.cache
def small() -> Any:
    return llama()


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    st.lists(st.integers(2, 20), min_size=1, max_size=8),
    st.integers(1, 200),
    st.integers(1, 3000),
    st.sampled_from(["data", "model"]),
)
def test_batches_and_blocks_change_nothing_but_rounding(
    lengths: list[int], batch_tokens: int, block_elements: int, labels: str
) -> None:
    network, samples = small(), sequences(*lengths)
    found = fisher(network, samples, labels=labels, batch_tokens=batch_tokens, block_elements=block_elements)
    assert_same(found, fisher(network, samples, labels=labels, batch_tokens=1, block_elements=1 << 30))


def test_bfloat16_is_close_and_summed_in_float32() -> None:
    import torch

    network, samples = llama(), sequences(9, 5, 12)
    found = fisher(copy.deepcopy(network).bfloat16(), samples)
    for name, expected in fisher(network, samples).items():
        assert found[name].dtype == torch.float32
        assert (found[name] - expected).norm() < 0.1 * expected.norm()


# Tokens of the model's own


def test_drawn_tokens_give_the_exact_fisher_on_average() -> None:
    """One place to draw at: the expectation is a sum over the vocabulary."""
    import torch

    network, ids = llama(), (3, 17, 20)
    many = [TokenSequence(position, ids, 2) for position in range(4000)]
    found = fisher(network, many, labels="model", batch_tokens=6000)
    probabilities = network(input_ids=torch.tensor([ids])).logits[0, 1].softmax(-1)
    expected: dict[str, Any] = {}
    for token, probability in enumerate(probabilities.tolist()):
        for name, value in naive(network, [TokenSequence(0, (*ids[:2], token), 2)]).items():
            expected[name] = expected.get(name, 0) + probability * value
    for name, value in found.items():
        assert (value - expected[name]).norm() < 0.1 * expected[name].norm()
        # The text's own token gives something else altogether.
    own = fisher(network, many[:1])
    assert any((own[name] - expected[name]).norm() > 0.5 * expected[name].norm() for name in own)


def test_what_is_drawn_depends_on_the_seed_and_the_sequence_alone() -> None:
    network, samples = llama(), sequences(9, 9, 9)
    one, again, other = (fisher(network, samples, labels="model", seed=seed) for seed in (1, 1, 2))
    assert_same(one, again, relative=0)
    assert any((one[name] - other[name]).abs().max() > 1e-3 * one[name].max() for name in one)
    alone = [fisher(network, [sample], labels="model", seed=1) for sample in samples]
    assert_same(one, {name: sum(part[name] for part in alone) / 3 for name in one})


# Layers that are used in other ways than once for each token of each sequence


def toy(kind: str) -> Any:
    import torch

    torch.manual_seed(1)

    class Toy(torch.nn.Module):
        base_model_prefix = "model"
        device = torch.device("cpu")

        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(40, 8)
            self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8, bias=False)
            if kind == "tied":
                self.second.weight = self.first.weight
            self.head = torch.nn.Linear(8, 40)

        def get_input_embeddings(self) -> Any:
            return self.embed

        def get_output_embeddings(self) -> Any:
            return self.head

        def forward(self, input_ids: Any, use_cache: bool = False) -> Any:
            hidden = self.embed(input_ids).cumsum(dim=1)
            if kind == "experts":
                flat = hidden.reshape(-1, 8)
                chosen = flat[:, 0] > 0
                mixed = torch.zeros_like(flat)
                mixed[chosen], mixed[~chosen] = self.first(flat[chosen]), self.second(flat[~chosen])
                hidden = mixed.reshape(hidden.shape)
            elif kind == "twice":
                hidden = self.second(self.first(self.first(hidden).tanh()).tanh())
            elif kind == "heads":
                hidden = self.second(self.first(hidden.unsqueeze(2).expand(-1, -1, 3, -1).tanh()).sum(2))
            elif kind == "half":
                self.second(hidden)
                hidden = self.second(self.first(hidden).tanh())
            elif kind == "unused":
                self.second(hidden)
                hidden = self.first(hidden)
            elif kind == "tied":
                hidden = self.second(self.first(hidden).tanh())
            else:
                hidden = self.first(hidden)
            return SimpleNamespace(logits=self.head(hidden.tanh()))

    return Toy().eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["experts", "twice", "heads", "half", "unused", "tied", "never"])
@pytest.mark.parametrize("modules", ["linear", "all"])
def test_other_ways_to_use_a_layer(kind: str, modules: str) -> None:
    network, samples = toy(kind), sequences(9, 5, 12, 2, 9, 7)
    found, never_ran = estimate(
        network, weights_of(network, modules, shapes(network), where="toy"), samples, batch_tokens=30
    )
    assert_same(found, naive(network, samples))
    assert never_ran == (["second.weight"] if kind == "never" else [])
    assert bool(found["first.weight"].any())
    assert ("second.weight" in found) == (kind != "tied")
    assert kind in ("tied", "unused", "never") or bool(found["second.weight"].any())


# What is left behind, and what is refused


def test_the_network_is_as_before() -> None:
    network = llama()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fisher(network, sequences(5, 3), "all")
    assert not any(module._forward_hooks for module in network.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())
    assert all(bool((before[name] == value).all()) for name, value in network.state_dict().items())


def test_every_sequence_is_told() -> None:
    told: list[int] = []
    fisher(llama(), sequences(9, 5, 12, 2), batch_tokens=24, done=told.append)
    assert told == [2, 2]


def test_nan_names_the_tensor_and_the_text() -> None:
    network = llama()
    network.model.embed_tokens.weight[39] = float("nan")
    samples = [TokenSequence(position, (1, 2, 39 if position == 17 else 4, 5), 1) for position in range(15, 20)]
    with pytest.raises(UntaxError, match=r"gradient of model.layers.0.mlp.down_proj.weight and 13 more") as error:
        fisher(network, samples)
    assert "text 17 of the data" in str(error.value)
    assert not any(module._forward_hooks for module in network.modules())


def test_infinity_in_one_weight_is_found_too() -> None:
    network = llama()
    network.model.layers[1].mlp.up_proj.weight[0] = 3e38
    with pytest.raises(UntaxError, match="is NaN or too large"):
        fisher(network, sequences(5, 6))
