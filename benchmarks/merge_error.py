"""How far a merged checkpoint is from the merge in float64, computed here from the factors, tensor by tensor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from merge_models import ADAPTERS, ALPHA, METHODS, MLP, RANK, Shape, relative_size
from safetensors import safe_open

ROWS = 128
"""Of a tensor at a time, for what is done element by element."""


def sampled(shape: Shape) -> dict[int, list[str]]:
    """All MLP tensors of the first layer, one in the middle and the last."""
    layers = sorted({0, shape.layers // 2, shape.layers - 1})
    return {layer: [f"model.layers.{layer}.mlp.{name}.weight" for name in MLP] for layer in layers}


def measure(folder: Path, shape: Shape, method: str, outputs: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """The error of each output, by its name, over the sampled tensors together.

    ``relative_error`` is ||(out - base) - true|| / ||true||, and beside it stands ``rounded_once``, the same of the
    float64 merge rounded to the output's dtype: no file can do better. ``off`` is the share of elements that are more
    than one step of the dtype away from that, ``unchanged`` the share that equal the base's. ``layers`` has the same
    for each layer, with the size of its adapters' deltas by that of its weights. For methods that draw at random
    ``true`` is the expectation over all masks, and ``slope`` = <out - base, true> / <true, true>, 1 on average, is
    given in place of errors.
    """
    sums = {name: {layer: _Sums() for layer in sampled(shape)} for name in (*outputs, "rounded_once")}
    differing = elements = 0
    for layer, tensors in sampled(shape).items():
        for tensor in tensors:
            base = _read(folder / "base", tensor)
            own = {name: _read(path, tensor) for name, path in outputs.items()}
            deltas = torch.stack([_delta(folder / f"a{number}", tensor) for number in range(ADAPTERS)])
            kept = _kept(deltas, method)
            for start in range(0, base.shape[0], ROWS):
                rows = slice(start, start + ROWS)
                true = _merged(deltas[:, rows], kept[:, rows], method)
                rounded = (base[rows].double() + true).to(base.dtype)
                for name, values in {**{name: own[name][rows] for name in own}, "rounded_once": rounded}.items():
                    sums[name][layer].add(values, base[rows], true, rounded)
                if len(own) == 2:
                    one, other = (values[rows] for values in own.values())
                    differing += int((_steps(one, other) > 1).sum())
            elements += base.numel()
    random = method == "dare_ties"
    result = {name: sum(own.values(), _Sums()).summary(random=random) for name, own in sums.items()}
    for name, own in sums.items():
        sizes = {layer: {"relative_size": relative_size(layer, shape.layers)} for layer in own}
        result[name]["layers"] = [sizes[layer] | found.summary(random=random) for layer, found in own.items()]
    if len(outputs) == 2 and not random:
        result["both"] = {"differ_by_more_than_a_step": differing / elements}
    return result


def untouched(folder: Path, shape: Shape, output: Path) -> bool:
    """Whether what no adapter changes is the base's, bit for bit."""
    names = [name for name in shape.tensors() if ".mlp." not in name]
    return all(torch.equal(_read(folder / "base", name), _read(output, name)) for name in names)


def adapter_error(folder: Path, shape: Shape, adapter: Path) -> float:
    """The relative error of a merged adapter's delta, for linear."""
    lost = size = 0.0
    for tensor in itertools.chain(*sampled(shape).values()):
        true = torch.stack([_delta(folder / f"a{number}", tensor) for number in range(ADAPTERS)]).mean(dim=0)
        down, up = _factors(adapter, tensor)
        lost += float(((up @ down - true) ** 2).sum())
        size += float((true**2).sum())
    return math.sqrt(lost / size)


@dataclass
class _Sums:
    lost: float = 0.0
    true: float = 0.0
    product: float = 0.0
    off: int = 0
    unchanged: int = 0
    elements: int = 0

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def add(self, out: torch.Tensor, base: torch.Tensor, true: torch.Tensor, rounded: torch.Tensor) -> None:
        delta = out.double() - base.double()
        self.lost += float(((delta - true) ** 2).sum())
        self.true += float((true**2).sum())
        self.product += float((delta * true).sum())
        self.off += int((_steps(out, rounded) > 1).sum())
        self.unchanged += int((out == base).sum())
        self.elements += out.numel()

    def summary(self, *, random: bool) -> dict[str, Any]:
        found = {"slope": self.product / self.true, "unchanged": self.unchanged / self.elements}
        if random:
            return found
        return {"relative_error": math.sqrt(self.lost / self.true), "off": self.off / self.elements, **found}


def _kept(deltas: torch.Tensor, method: str) -> torch.Tensor:
    """ties: the largest elements of each delta, a share of ``density``; all of them otherwise."""
    if method != "ties":
        return torch.ones_like(deltas, dtype=torch.bool)
    count = int(METHODS[method][0]["density"] * deltas[0].numel())
    kept = []
    for delta in deltas:
        magnitudes = delta.abs()
        smallest = magnitudes.flatten().kthvalue(delta.numel() - count + 1).values
        kept.append(magnitudes >= smallest)
    return torch.stack(kept)


def _merged(deltas: torch.Tensor, kept: torch.Tensor, method: str) -> torch.Tensor:
    weight = METHODS[method][0]["weight"]
    if method == "linear":
        return weight * deltas.sum(dim=0)
    if method == "ties":
        return _elected(deltas * kept, normalize=True)
    return sum(
        chance * weight * _elected(deltas * mask[:, None, None], normalize=False)
        for chance, mask in _masks(METHODS[method][0]["density"])
    )


def _masks(density: float) -> Iterator[tuple[float, torch.Tensor]]:
    """(chance, 1 / density for those that are kept and 0 for others) of each of the 2^K ways to drop an element."""
    for number in range(2**ADAPTERS):
        kept = torch.tensor([bool(number >> model & 1) for model in range(ADAPTERS)])
        yield density ** int(kept.sum()) * (1 - density) ** int((~kept).sum()), kept.double() / density


def _elected(deltas: torch.Tensor, *, normalize: bool) -> torch.Tensor:
    """mergekit's consensus ``sum`` for equal weights: those that agree with the sign of the sum; 0 elects +."""
    positive = deltas.sum(dim=0) >= 0
    agreeing = torch.where(positive, deltas > 0, deltas < 0)
    total = (deltas * agreeing).sum(dim=0)
    return total / agreeing.sum(dim=0).clamp(min=1) if normalize else total


def _steps(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """How many numbers of their 16-bit dtype lie between two tensors, element by element."""
    first, second = (values.view(torch.int16).int() for values in (one, other))
    # Sign and magnitude -> a scale on which neighbours differ by one.
    first, second = (torch.where(bits < 0, -(bits & 0x7FFF), bits) for bits in (first, second))
    return (first - second).abs()


def _delta(adapter: Path, tensor: str) -> torch.Tensor:
    down, up = _factors(adapter, tensor)
    return ALPHA / RANK * (up @ down)


def _factors(adapter: Path, tensor: str) -> tuple[torch.Tensor, torch.Tensor]:
    module = f"base_model.model.{tensor.removesuffix('.weight')}"
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        return tuple(file.get_tensor(f"{module}.lora_{one}.weight").double() for one in "AB")


def _read(folder: Path, tensor: str) -> torch.Tensor:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if tensor in file.keys():  # noqa: SIM118 - the file is no mapping
                return file.get_tensor(tensor)
    raise KeyError(f"{folder.name} has no {tensor}")
