"""Ways of making a LoRA delta 90% sparse, as in PAFT's figure 2, tried on a really trained model of 260k parameters.

    python benchmarks/sparse/explore.py --base MODEL --data mix.jsonl.gz --stories tinystories_2mb.txt.gz

adds the runs that benchmarks/sparse/explore.json lacks, one after the other on one thread. `--only "pruned globally"`
makes those whose name contains this, `--out FILE` makes them anew into another file. The model and the training are
written out in toy_llama.py and here, the ways in ways.py; sweep.py measures by Axolotl what came of it.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from toy_llama import Batch, Layout, Llama, load_data
from ways import WAYS, Dense, Step, delta_norms, largest_per_layer, least_worth_removed

HERE = Path(__file__).resolve().parent
KEPT = 0.3162
"""Of the rows and of the columns: a tenth of the elements."""
DENSE_PER_LAYER, DENSE_GLOBALLY = "largest per layer in the dense run", "largest in the dense run"


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        way: a key of ways.WAYS.
        settings: of the way.
        seed: of the initial A and of the order of the rows.
        steps: optimizer steps.
        schedule: of the learning rate.
        learning_rate: before schedule and compensation.
        compensation: a step's learning rate is multiplied by (share of elements that are left) ** -compensation.
        scales: the trained delta is measured multiplied by these, too.
    """

    way: str = "dense"
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    steps: int = 300
    schedule: str = "cosine"
    learning_rate: float = 1e-3
    compensation: float = 0.0
    scales: tuple[float, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """What its record is found by."""
        return {key: value for key, value in vars(self).items() if key != "scales"}

    @property
    def name(self) -> str:
        settings = [f"{key}={value}" for key, value in self.settings.items()]
        others = (f"lr={self.learning_rate}", f"compensation={self.compensation}", f"seed={self.seed}")
        return " ".join([self.way, *settings, self.schedule, *others, f"steps={self.steps}"])


def runs() -> Iterator[Run]:
    """Every run that was finished."""
    yield from (Run(schedule=schedule) for schedule in ("constant", "cosine", "linear"))
    yield from (Run(learning_rate=rate) for rate in (3e-3, 1e-2))
    yield from (Run(seed=seed, scales=(0.75, 0.5)) for seed in (1, 2))
    yield Run(steps=600)
    yield from (Run("subgradient on the product", {"strength": strength}) for strength in (1e-3, 1e-2))
    yield Run("subgradient on the factors", {"strength": 1e-3})
    yield from (_proximal("rows and columns", strength) for strength in (0.3, 1.0, 3.0))
    yield _proximal("rows", 1.0)
    yield from (_proximal("elements", strength) for strength in (0.1, 0.3))
    yield _proximal("rows and columns", 2.0, until=0.4, compensation=0.5)
    yield _proximal("rows and columns", 1.0, adaptive=1.0, until=0.4, compensation=0.5)
    yield Run("proximal in Adam's metric", {"strength": 0.01, "until": 0.4}, compensation=0.5)
    yield from _fixed()
    yield from (_per_layer(**more) for more in ({}, {"learning_rate": 3e-3}))
    yield from (_per_layer(compensation=1.0, seed=seed) for seed in (0, 1))
    yield from (_globally(score) for score in ("delta norm", "saliency, root", "saliency"))
    yield from _compensated()


def _fixed() -> Iterator[Run]:
    last_mlp = [f"4.mlp.{part}_proj" for part in ("down", "up", "gate")]
    last_outputs = ["4.mlp.down_proj", "3.mlp.down_proj", "4.self_attn.o_proj"]
    values = [f"{layer}.self_attn.v_proj" for layer in (1, 2, 3)]
    for left in (DENSE_PER_LAYER, DENSE_GLOBALLY, "random", last_outputs, values, last_mlp):
        yield Run("fixed support", {"left": left})
    yield Run("fixed support", {"left": DENSE_PER_LAYER}, learning_rate=3e-3)


def _compensated() -> Iterator[Run]:
    yield from (_globally(score, compensation=0.5) for score in ("delta norm", "saliency"))
    yield _globally("delta norm", 0.05, 0.3, compensation=0.5)
    yield from (_globally("delta norm", compensation=power, schedule="constant") for power in (0.5, 1.0))
    yield from (_globally(score, compensation=0.75) for score in ("delta norm", "saliency"))
    yield _globally("saliency", 0.05, 0.3, compensation=0.75)
    yield _globally("delta norm", compensation=0.75, learning_rate=3e-3)
    yield from (_globally("delta norm", learning_rate=rate) for rate in (3e-3, 5e-3))
    yield _globally("delta norm", compensation=1.0)
    yield from (_globally("delta norm", compensation=power, seed=1, scales=(0.75, 0.5)) for power in (0.75, 1.0))
    yield _globally("delta norm", compensation=1.0, seed=2)
    yield _globally("delta norm", compensation=1.0, steps=600)


def _proximal(on: str, strength: float, *, adaptive: float = 0.0, until: float = 1.0, compensation: float = 0.0) -> Run:
    settings = {"on": on, "strength": strength, "adaptive": adaptive, "until": until}
    return Run("proximal", settings, compensation=compensation)


def _per_layer(**more: Any) -> Run:
    return Run("pruned per layer", {"target": 0.9, "start": 0.1, "end": 0.5}, **more)


def _globally(score: str, start: float = 0.1, end: float = 0.5, **more: Any) -> Run:
    return Run("pruned globally", {"score": score, "target": 0.9, "start": start, "end": end}, **more)


def main() -> None:
    options = _options()
    chosen = [run for run in runs() if options.only in run.name]
    if not chosen:
        raise SystemExit(
            f"no run's name contains {options.only!r}; there are\n" + "\n".join(run.name for run in runs())
        )
    content = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    there = content.get("runs", [])
    missing = [run for run in chosen if not any(run.identity.items() <= kept.items() for kept in there)]
    if missing:
        _add(missing, options, content)
    print(f"{len(missing)} runs added to {options.out}, {len(chosen) - len(missing)} were there")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, type=Path, help="folder of the model")
    parser.add_argument("--data", required=True, type=Path, help="rows of instruction, input, output; .jsonl.gz")
    parser.add_argument(
        "--stories", required=True, type=Path, help="texts like those of the base's pretraining; .txt.gz"
    )
    parser.add_argument("--only", default="", help="runs whose name contains this")
    parser.add_argument("--out", default=HERE / "explore.json", type=Path)
    parser.add_argument(
        "--cache", type=Path, help="where tokenised rows are kept for the next time; nowhere by default"
    )
    return parser.parse_args()


def _add(missing: list[Run], options: argparse.Namespace, content: dict[str, Any]) -> None:
    """Train the missing ones, and write all after each."""
    torch.set_num_threads(1)
    lab = Lab(options)
    head = _head(lab, options)
    for key in ("versions", "base"):
        if content and content[key] != head[key]:
            raise SystemExit(f"{options.out} has {key} {content[key]}, here they are {head[key]}: give another --out")
    for run in missing:
        content = {**head, **content, "runs": [*content.get("runs", []), lab.record(run)]}
        _write(options.out, content)


def _head(lab: Lab, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "what": "ways of making the delta sparse in LoRA SFT of stories260k (r = 16, alpha = 16, all linear layers, "
        "batch 8, AdamW, clipping to 1, float32)",
        "command": f"python benchmarks/sparse/explore.py --base {options.base.resolve().name} "
        f"--data {options.data.name} --stories {options.stories.name}",
        "notes": [
            "response_nll: per token of 400 held-out responses; story_nll: of 30 stories like the base's own.",
            "sparsity: share of |delta| < 1e-5, exact_zeros: share of zeros; both averaged over the layers.",
            "compensation: a step's learning rate is multiplied by (share of elements left) ** -compensation.",
        ],
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
        "base": lab.measured(None),
    }


def _write(out: Path, content: dict[str, Any]) -> None:
    new = out.with_suffix(".new")
    new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    new.replace(out)


class Lab:
    """The base and the rows: trains runs and measures them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model = Llama(options.base)
        with tempfile.TemporaryDirectory() as nowhere:
            cache = options.cache or Path(nowhere)
            cache.mkdir(parents=True, exist_ok=True)
            self.data = load_data(options.base, options.data, options.stories, cache)
        self.responses, self.texts = self.data.responses(), self.data.texts()

    def record(self, run: Run) -> dict[str, Any]:
        deltas = self.model.layout.deltas(self._trained(run))
        found = {**run.identity, **self.measured(deltas), **_shares(deltas)}
        if run.scales:
            found["scaled"] = [
                {"scale": scale, **self.measured([scale * delta for delta in deltas])} for scale in run.scales
            ]
        print(
            run.name, {key: found[key] for key in ("response_nll", "story_nll", "sparsity", "exact_zeros")}, flush=True
        )
        return found

    def measured(self, deltas: list[Tensor] | None) -> dict[str, float]:
        measures = {"response_nll": self.responses, "story_nll": self.texts}
        return {key: round(self.model.mean_nll(batches, deltas), 4) for key, batches in measures.items()}

    def _trained(self, run: Run) -> Tensor:
        if run == Run():
            return self._dense
        settings = dict(run.settings)
        if "left" in settings:
            settings["left"] = self._support(settings["left"])
        way = WAYS[run.way](self.model.layout, run.steps, **settings)
        return train(self.model, self.data.training(run.seed, run.steps), run, way)

    @cached_property
    def _dense(self) -> Tensor:
        """The factors of the dense run, which also says where the largest rows and columns will be."""
        return train(self.model, self.data.training(0, 300), Run(), Dense(self.model.layout, 300))

    def _support(self, left: str | list[str]) -> Tensor:
        """Groups that are left, shape (groups,): of the layers whose names are given, or chosen as named."""
        layout = self.model.layout
        if isinstance(left, list):
            whole = [float(name.endswith(tuple(left))) for name in layout.names]
            return torch.tensor(whole * 2).repeat_interleave(torch.tensor(layout.sizes))
        if left == "random":
            generator = torch.Generator().manual_seed(0)
            return (torch.rand(layout.groups, generator=generator) < KEPT).float()
        if left == DENSE_PER_LAYER:
            return largest_per_layer(layout, self._dense, KEPT)
        everything = torch.ones(layout.groups)
        return least_worth_removed(layout, delta_norms(layout, self._dense) ** 2, everything, 1 - 0.9)


def train(model: Llama, batches: list[Batch], run: Run, way: Dense) -> Tensor:
    """Train by AdamW without decay (0.9, 0.999); returns the factors."""
    factors = model.layout.initial(run.seed).requires_grad_()
    mean, squares, left = torch.zeros_like(factors), torch.zeros_like(factors), 1.0
    for index, batch in enumerate(batches):
        lr = _scheduled(run, index)
        factors.grad = None
        if run.compensation:
            left = _left(model.layout, factors) if index % 5 == 0 else left
            lr = lr * left**-run.compensation
        model.nll(batch, model.layout.deltas(factors))[0].backward()
        with torch.no_grad():
            way.add_gradient(factors, factors.grad)
            norm = factors.grad.norm()
            gradient = way.mask_gradient(factors.grad * (1.0 / norm) if norm > 1.0 else factors.grad)
            mean.mul_(0.9).add_(gradient, alpha=0.1)
            squares.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            denominator = (squares / (1 - 0.999 ** (index + 1))).sqrt().add_(1e-8)
            factors.addcdiv_(mean / (1 - 0.9 ** (index + 1)), denominator, value=-lr)
            way.after_step(factors, Step(index, lr, squares, denominator))
    return factors.detach()


def _scheduled(run: Run, index: int) -> float:
    shares = {
        "constant": 1.0,
        "linear": 1 - index / run.steps,
        "cosine": 0.5 * (1 + math.cos(math.pi * index / run.steps)),
    }
    return run.learning_rate * shares[run.schedule]


@torch.no_grad()
def _left(layout: Layout, factors: Tensor) -> float:
    """Share of the delta's elements whose row and column are not zero; 1 before the first step, where B is."""
    groups = (factors != 0).any(1).float()
    return max(layout.density(groups), 1e-3) if groups[: layout.rows].any() else 1.0


def _shares(deltas: list[Tensor]) -> dict[str, float]:
    near = sum((delta.abs() < 1e-5).float().mean().item() for delta in deltas) / len(deltas)
    zero = sum((delta == 0).float().mean().item() for delta in deltas) / len(deltas)
    return {"sparsity": round(near, 4), "exact_zeros": round(zero, 4)}


if __name__ == "__main__":
    main()
