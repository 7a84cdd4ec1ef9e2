"""A small Llama written out with LoRA on every linear layer, and the rows that it is trained on.

All factors are one matrix of shape (groups, rank): the rows of every B, layer after layer, then the columns of every A.
A row of B is a row of the delta and a column of A a column of it, so each row of the matrix is a group that can go as a
whole, and a way of making the delta sparse treats both alike. alpha is the rank: the delta of a layer is B @ A.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

RANK = 16
BATCH, HELD_OUT, STORIES, ROWS = 8, 400, 30, 10_000
MOST_TOKENS, MOST_STORY_TOKENS = 128, 512
LINEAR = (*(f"self_attn.{part}_proj" for part in "qkvo"), *(f"mlp.{part}_proj" for part in ("gate", "up", "down")))
EMBEDDINGS = "model.embed_tokens.weight"

# Tokens, and how many of them are not scored.
Tokens = tuple[list[int], int]
# Token ids and labels, both of shape (rows, length).
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Layout:
    """Where each layer's groups are in the matrix of factors.

    Attributes:
        names: of the layers.
        shapes: (out, in) of each.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]

    @property
    def sizes(self) -> list[int]:
        return [rows for rows, _ in self.shapes] + [columns for _, columns in self.shapes]

    @property
    def rows(self) -> int:
        """How many groups are rows of B; the others are columns of A."""
        return sum(rows for rows, _ in self.shapes)

    @property
    def groups(self) -> int:
        return sum(self.sizes)

    def split(self, of_groups: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What belongs to the rows and to the columns of each layer."""
        parts = of_groups.split(self.sizes)
        return parts[: len(self.shapes)], parts[len(self.shapes) :]

    def deltas(self, factors: Tensor) -> list[Tensor]:
        """B @ A of every layer."""
        return [b @ a.T for b, a in zip(*self.split(factors), strict=True)]

    def density(self, left: Tensor) -> float:
        """Share of elements whose row and column are left, averaged over the layers; ``left`` has shape (groups,)."""
        shares = [(rows.mean() * columns.mean()).item() for rows, columns in zip(*self.split(left), strict=True)]
        return sum(shares) / len(shares)

    def initial(self, seed: int) -> Tensor:
        """B is zero and A uniform within 1 / sqrt(in), as in peft."""
        generator = torch.Generator().manual_seed(seed)
        columns = [
            ((torch.rand(RANK, width, generator=generator) * 2 - 1) / math.sqrt(width)).T for _, width in self.shapes
        ]
        return torch.cat([torch.zeros(self.rows, RANK), *columns])


class Llama:
    """The frozen base, float32: grouped-query attention, no biases, tied embeddings."""

    def __init__(self, folder: Path):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.weights = load_file(folder / "model.safetensors")
        self.layers, self.head = int(config["num_hidden_layers"]), int(config["head_dim"])
        self.heads, self.kv_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
        self.epsilon = float(config["rms_norm_eps"])
        names = tuple(f"model.layers.{layer}.{part}" for layer in range(self.layers) for part in LINEAR)
        shapes = [self.weights[f"{name}.weight"].shape for name in names]
        self.layout = Layout(names, tuple((int(rows), int(columns)) for rows, columns in shapes))
        self._cosine, self._sine = self._rotations(config["rope_parameters"]["rope_theta"])

    def _rotations(self, theta: float) -> tuple[Tensor, Tensor]:
        frequencies = 1 / theta ** (torch.arange(0, self.head, 2).float() / self.head)
        angles = torch.arange(MOST_STORY_TOKENS).float()[:, None] * frequencies[None]
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()

    def nll(self, batch: Batch, deltas: list[Tensor] | None, reduction: str = "mean") -> tuple[Tensor, int]:
        """Cross-entropy of the scored tokens, and how many they are."""
        ids, labels = batch
        targets = labels[:, 1:]
        scored = targets != -100
        logits = F.linear(self.hidden(ids[:, :-1], deltas)[scored], self.weights[EMBEDDINGS])
        return F.cross_entropy(logits, targets[scored], reduction=reduction), int(scored.sum())

    @torch.no_grad()
    def mean_nll(self, batches: list[Batch], deltas: list[Tensor] | None) -> float:
        """NLL per token over all batches."""
        measured = [self.nll(batch, deltas, "sum") for batch in batches]
        return sum(total.item() for total, _ in measured) / sum(count for _, count in measured)

    def hidden(self, ids: Tensor, deltas: list[Tensor] | None) -> Tensor:
        """Last hidden states, shape (rows, length, width), with the layers' deltas added to their weights."""
        x = self.weights[EMBEDDINGS][ids]
        for layer in range(self.layers):
            first = layer * len(LINEAR)
            w = [self.weights[f"{name}.weight"] for name in self.layout.names[first : first + len(LINEAR)]]
            if deltas is not None:
                w = [own + delta for own, delta in zip(w, deltas[first : first + len(LINEAR)], strict=True)]
            x = x + self._attention(self._norm(x, f"model.layers.{layer}.input_layernorm"), w)
            h = self._norm(x, f"model.layers.{layer}.post_attention_layernorm")
            gate, up = F.linear(h, torch.cat(w[4:6])).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, w[6])
        return self._norm(x, "model.norm")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.epsilon)

    def _attention(self, x: Tensor, w: list[Tensor]) -> Tensor:
        rows, length, _ = x.shape
        # One product for all three.
        parts = F.linear(x, torch.cat(w[:3])).split([len(own) for own in w[:3]], -1)
        q, k, v = (part.view(rows, length, -1, self.head).transpose(1, 2) for part in parts)
        q, k = self._rotate(q), self._rotate(k)
        k, v = (part.repeat_interleave(self.heads // self.kv_heads, 1) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(y.transpose(1, 2).reshape(rows, length, -1), w[3])

    def _rotate(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        length = x.shape[-2]
        return x * self._cosine[:length] + torch.cat([-second, first], -1) * self._sine[:length]


@dataclass(frozen=True)
class Data:
    """Tokenised rows: 400 held out, the others to train on, and 30 of the stories that the base was trained on."""

    held_out: list[Tokens]
    train: list[Tokens]
    stories: list[Tokens]

    def responses(self) -> list[Batch]:
        return _batches(self.held_out, 40)

    def texts(self) -> list[Batch]:
        return _batches(self.stories, 10)

    def training(self, seed: int, steps: int) -> list[Batch]:
        """Batches in the order of the seed, shuffled anew when the rows are through."""
        generator = random.Random(seed + 1000)
        batches: list[list[Tokens]] = []
        while len(batches) < steps:
            order = list(range(len(self.train)))
            generator.shuffle(order)
            starts = range(0, len(order) - BATCH + 1, BATCH)
            batches += [[self.train[row] for row in order[start : start + BATCH]] for start in starts]
        return [_collate(batch) for batch in batches[:steps]]


def _batches(texts: list[Tokens], size: int) -> list[Batch]:
    ordered = sorted(texts, key=lambda text: len(text[0]))
    return [_collate(ordered[start : start + size]) for start in range(0, len(ordered), size)]


def _collate(texts: list[Tokens]) -> Batch:
    """Padded on the right, which no causal model sees; what is not scored has the label -100."""
    shape = (len(texts), max(len(tokens) for tokens, _ in texts))
    ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
    for row, (tokens, unscored) in enumerate(texts):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, unscored : len(tokens)] = torch.tensor(tokens[unscored:])
    return ids, labels


def digest(*files: Path) -> str:
    """Of the files' contents: what is cached under it cannot be another's."""
    together = hashlib.sha256()
    for file in files:
        together.update(hashlib.sha256(file.read_bytes()).digest())
    return together.hexdigest()[:16]


def load_data(base: Path, rows: Path, stories: Path, cache: Path) -> Data:
    """Tokenise ``rows`` (instruction, input, output; .jsonl.gz) and ``stories`` (.txt.gz) unless the cache has them."""
    cached = cache / f"tokens-{digest(base / 'tokenizer.json', rows, stories)}.json"
    if not cached.exists():
        new = cached.with_suffix(".new")
        new.write_text(json.dumps([_rows(base, rows), _stories(base, stories)]), encoding="utf-8")
        new.replace(cached)
    short, texts = json.loads(cached.read_text(encoding="utf-8"))
    kept = [(tokens, unscored) for tokens, unscored in short]
    return Data(kept[:HELD_OUT], kept[HELD_OUT:], [(tokens, unscored) for tokens, unscored in texts])


def _rows(base: Path, data: Path) -> list[Tokens]:
    """Rows of at most 128 tokens, in a fixed random order; the response and the end of the sequence are scored."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(base))
    with gzip.open(data, "rt", encoding="utf-8") as handle:
        rows = [json.loads(line) for line in handle]
    random.Random(0).shuffle(rows)
    kept: list[Tokens] = []
    for row in rows:
        texts = [row["instruction"], row.get("input") or "", row["output"]]
        if sum(map(len, texts)) > 3.5 * MOST_TOKENS or len(texts[2]) < 8:
            continue
        given = texts[0] + (f"\n{texts[1]}" if texts[1] else "")
        prompt = tokenizer(f"### Instruction:\n{given}\n\n### Response:\n")["input_ids"]
        response = [*tokenizer(texts[2], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        if len(prompt) + len(response) <= MOST_TOKENS:
            kept.append((prompt + response, len(prompt)))
        if len(kept) == ROWS:
            break
    return kept


def _stories(base: Path, data: Path) -> list[Tokens]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(base))
    with gzip.open(data, "rt", encoding="utf-8") as handle:
        texts = [text.strip() for text in handle.read().split("<|endoftext|>")]
    ids = [[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts if text]
    return [(tokens[:MOST_STORY_TOKENS], 1) for tokens in ids[:STORIES]]
