"""The shape of a Llama-like model, from its ``config.json``, and how many weights it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from untax.errors import UntaxError


class _Family(NamedTuple):
    """What a ``model_type`` implies and its ``config.json`` may leave out.

    Attributes:
        tied: the default of ``tie_word_embeddings``.
        head_dim: the default of ``head_dim``; None stands for hidden / heads.
        bias: which biases the attention has: ``qkv`` always, ``config`` if ``attention_bias`` says so.
        norms: normalisations of a layer that run over the hidden size.
        head_norms: whether queries and keys are normalised: ``head`` with one weight per element of a head, ``all``.
        plain_norms: the normalisations have no weights.
    """

    tied: bool = False
    head_dim: int | None = None
    bias: str = "config"
    norms: int = 2
    head_norms: str = ""
    plain_norms: bool = False


FAMILIES = {
    "llama": _Family(),
    "mistral": _Family(bias=""),
    "smollm3": _Family(tied=True),
    "qwen2": _Family(bias="qkv"),
    "qwen3": _Family(head_dim=128, head_norms="head"),
    "olmo": _Family(plain_norms=True),
    "olmo2": _Family(head_norms="all"),
    "olmo3": _Family(head_norms="all"),
    "gemma": _Family(tied=True, head_dim=256),
    "gemma2": _Family(tied=True, head_dim=256, norms=4),
    "gemma3_text": _Family(tied=True, head_dim=256, norms=4, head_norms="head"),
}
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


class Linear(NamedTuple):
    """A linear layer without its bias: ``name`` as in the checkpoint, of a model's layer 0 where it is of a layer."""

    name: str
    inputs: int
    outputs: int

    @property
    def size(self) -> int:
        """Weights."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Architecture:
    """A decoder with gated MLPs.

    Attributes:
        layers: decoder layers.
        hidden: width of the residual stream.
        intermediate: width of the MLPs.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of a head.
        vocabulary: rows of the embedding.
        tied: whether the output layer is the embedding.
        attention_biases: which projections of the attention have a bias.
        mlp_biases: whether the MLP's projections have one.
        norms: normalisations of a layer over the hidden size.
        head_norms: of queries and keys: "" for none, ``head`` or ``all``.
        plain_norms: whether normalisations have no weights.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False
    attention_biases: tuple[str, ...] = ()
    mlp_biases: bool = False
    norms: int = 2
    head_norms: str = ""
    plain_norms: bool = False

    @property
    def queries(self) -> int:
        """Width of all queries together, and of the attention's result."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all keys together, and of all values."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers of one decoder layer, in the order of the forward pass."""
        attention, mlp = "model.layers.0.self_attn.", "model.layers.0.mlp."
        return (
            Linear(f"{attention}q_proj", self.hidden, self.queries),
            Linear(f"{attention}k_proj", self.hidden, self.keys),
            Linear(f"{attention}v_proj", self.hidden, self.keys),
            Linear(f"{attention}o_proj", self.queries, self.hidden),
            Linear(f"{mlp}gate_proj", self.hidden, self.intermediate),
            Linear(f"{mlp}up_proj", self.hidden, self.intermediate),
            Linear(f"{mlp}down_proj", self.intermediate, self.hidden),
        )

    @property
    def embedding(self) -> int:
        """Weights of the embedding; the output layer has as many."""
        return self.vocabulary * self.hidden

    def layer_parameters(self) -> int:
        """Weights of one decoder layer."""
        return sum(linear.size for linear in self.linears) + self._biases() + self._norm_weights()

    def parameters(self) -> int:
        """Weights of the model; a tied output layer is not counted again."""
        final = 0 if self.plain_norms else self.hidden
        return self.layers * self.layer_parameters() + self.embedding * (1 if self.tied else 2) + final

    def multiplied(self) -> int:
        """Weights that a token is multiplied by: those of all linear layers, the output layer among them."""
        return self.layers * sum(linear.size for linear in self.linears) + self.embedding

    def _biases(self) -> int:
        attention = sum(linear.outputs for linear in self.linears if _last(linear.name) in self.attention_biases)
        return attention + (2 * self.intermediate + self.hidden) * self.mlp_biases

    def _norm_weights(self) -> int:
        heads = {"": 0, "head": 2 * self.head_dim, "all": self.queries + self.keys}[self.head_norms]
        return 0 if self.plain_norms else self.norms * self.hidden + heads


def from_config(config: Mapping[str, Any], *, where: object = "config.json") -> Architecture:
    """The shape that a ``config.json`` describes.

    Args:
        config: its content.
        where: what to call it in an error.

    Raises:
        UntaxError: the architecture is not one of these (mixtures of experts, for one), or a number is missing.
    """
    text = config.get("text_config")
    if isinstance(text, Mapping) and text.get("model_type") in FAMILIES:
        # What a model of text and images says about its text model may lack what it says at the top.
        config = {**{key: config[key] for key in ("tie_word_embeddings",) if key in config}, **text}
    kind = str(config.get("model_type") or "")
    experts = next((key for key in EXPERTS if (config.get(key) or 0) > 1), None)
    if kind not in FAMILIES or experts:
        reason = f"has {config[experts]} experts" if experts else f"is of the type {kind or '(none)'}"
        raise UntaxError(
            f"The model {reason}; memory and hours are estimated only for {', '.join(FAMILIES)}.", where=where
        )
    return _of_family(config, FAMILIES[kind], where)


def _of_family(config: Mapping[str, Any], family: _Family, where: object) -> Architecture:
    def number(key: str, default: int | None = None) -> int:
        value = config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise UntaxError(f"{key} is {value!r}, and a whole number is needed.", where=where)
        return value

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    tied = config.get("tie_word_embeddings")
    return Architecture(
        layers=number("num_hidden_layers"),
        hidden=hidden,
        intermediate=number("intermediate_size"),
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        head_dim=number("head_dim", family.head_dim or hidden // heads),
        vocabulary=number("vocab_size"),
        tied=family.tied if tied is None else bool(tied),
        attention_biases=_attention_biases(config, family),
        mlp_biases=bool(config.get("mlp_bias")),
        norms=family.norms,
        head_norms=family.head_norms,
        plain_norms=family.plain_norms,
    )


def _attention_biases(config: Mapping[str, Any], family: _Family) -> tuple[str, ...]:
    if family.bias == "qkv":
        return ("q_proj", "k_proj", "v_proj")
    given = family.bias == "config" and bool(config.get("attention_bias"))
    return ("q_proj", "k_proj", "v_proj", "o_proj") if given else ()


def _last(name: str) -> str:
    return name.rpartition(".")[2]
