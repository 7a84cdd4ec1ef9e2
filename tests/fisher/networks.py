"""Networks to take a Fisher of, and the loop over samples that says what it is."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from untax.fisher.sequences import TokenSequence

LLAMA = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama(*, tied: bool = False, bias: bool = False) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(num_key_value_heads=2, tie_word_embeddings=tied, attention_bias=bias, **LLAMA)
    return frozen(LlamaForCausalLM(config))


def gpt2() -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return frozen(GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=64, n_embd=16, n_layer=2, n_head=2)))


def frozen(network: Any) -> Any:
    """Without dropout and gradients, and with weights large enough for gradients of ordinary size."""
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(5)
    return network.eval().requires_grad_(False)


def sequences(*lengths: int, vocabulary: int = 40, start: int = 1) -> list[TokenSequence]:
    import torch

    generator = torch.Generator().manual_seed(3)
    return [
        TokenSequence(position, tuple(torch.randint(vocabulary, (length,), generator=generator).tolist()), start)
        for position, length in enumerate(lengths)
    ]


def shapes(network: Any) -> dict[str, tuple[int, ...]]:
    """Of a checkpoint that holds each parameter under its name."""
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}


def naive(network: Any, samples: Sequence[TokenSequence]) -> dict[str, Any]:
    """The definition, in float64, one sample and one parameter at a time."""
    import torch

    network = copy.deepcopy(network).double()
    parameters = dict(network.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    for sample in samples:
        likelihoods = network(input_ids=torch.tensor([sample.ids])).logits[0].log_softmax(-1)
        places = range(sample.start, len(sample.ids))
        likelihood = sum(likelihoods[place - 1, sample.ids[place]] for place in places)
        gradients = torch.autograd.grad(likelihood, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient**2
    return {name: value / len(samples) for name, value in total.items()}


def assert_same(found: dict[str, Any], expected: dict[str, Any], *, relative: float = 1e-4) -> None:
    """Each tensor up to ``relative`` of each element; elements next to nothing, up to a millionth of the mean."""
    import torch

    for name, value in found.items():
        wanted = expected[name].double()
        torch.testing.assert_close(
            value.double(),
            wanted,
            rtol=relative,
            atol=1e-6 * wanted.mean().item(),
            msg=lambda text, n=name: f"{n}: {text}",
        )
