"""The streaming methods on one block, against mergekit's own functions and against brute force."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from untax.adapters.blocks import row_blocks
from untax.errors import UntaxError
from untax.merge.masks import keep_mask
from untax.merge.method import REQUIRED, Block, Job, Method
from untax.merge.methods.consensus import elect
from untax.merge.methods.linear import average, summed
from untax.plugins import registry

NAMES = ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "slerp", "nuslerp")
BASE = torch.randn(6, 10, generator=torch.Generator().manual_seed(9))


@dataclass
class InMemory:
    """K deltas that are tensors."""

    tensors: list[torch.Tensor | None]
    tensor: str = "model.layers.0.mlp.up_proj.weight"

    @property
    def shape(self) -> tuple[int, int]:
        return next(tuple(delta.shape) for delta in self.tensors if delta is not None)  # type: ignore[return-value]

    @property
    def models(self) -> int:
        return len(self.tensors)

    def has(self, model: int) -> bool:
        return self.tensors[model] is not None

    def rows(self, model: int, rows: slice) -> torch.Tensor:
        delta = self.tensors[model]
        return torch.zeros(self.shape)[rows] if delta is None else delta[rows].clone()

    def blocks(self) -> Iterator[slice]:
        yield from row_blocks(*self.shape)


def deltas(count: int, *shape: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*(shape or (6, 10)), generator=generator) for _ in range(count)]


def method(name: str) -> Method:
    found: Method = registry("merge_methods")[name]
    return found


def values(name: str, **given_: Any) -> dict[str, Any]:
    defaults = {one.name: one.default for one in method(name).parameters}
    per_model = {one.name for one in method(name).parameters if one.per_model}
    count = len(next((value for value in given_.values() if isinstance(value, tuple)), (1,)))
    full = {key: (value,) * count if key in per_model else value for key, value in defaults.items()}
    return {**full, **given_}


def run(name: str, tensors: list[torch.Tensor | None], base: torch.Tensor = BASE, **given_: Any) -> torch.Tensor:
    chosen, held, resolved = method(name), InMemory(tensors), values(name, **given_)
    job = Job(held, resolved, 42, base=lambda rows: base[rows].clone())
    if chosen.whole is not None:
        job = Job(held, resolved, 42, chosen.whole(iter([job])))
    statistics = None if chosen.statistics is None else chosen.statistics(job)
    stacked = torch.stack([held.rows(model, slice(None)) for model in range(held.models)])
    rows = slice(0, held.shape[0])
    return chosen.merge(Block(stacked, held.tensor, rows, held.shape, resolved, 42, statistics, base))


def stock(name: str, models: list[torch.Tensor], base: torch.Tensor | None, **given_: Any) -> torch.Tensor:
    """mergekit's own method on full weights, in float64."""
    from mergekit.merge_methods import TensorGroup, get

    listed = [tensor.double() for tensor in ([base] if base is not None else []) + models]
    group = TensorGroup.from_tensors(listed, base_index=0 if base is not None else None)
    return get(name).merge_group(group, **given_)  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_mergekits(name: str) -> None:
    from mergekit.merge_methods import get

    spec = get(name).spec
    wanted = {
        one.name: (one.scope.value != "shared", one.scope.value == "input", REQUIRED if one.required else one.default)
        for one in spec.parameters
    }
    own = {one.name: (one.per_model, one.counts_base, one.default) for one in method(name).parameters}
    assert own == wanted
    assert method(name).base == (spec.contract.base.value == "required" or name == "nuslerp")


def test_average_and_sum() -> None:
    assert average({"weight": (1.0, 3.0), "normalize": True}) == ((0.25, 0.75), 1.0)
    assert average({"weight": (1.0, 3.0), "normalize": False}) == ((1.0, 3.0), 4.0)
    assert summed({"weight": (1.0, 3.0), "normalize": True, "lambda": 2.0}) == ((0.5, 1.5), 1.0)
    for function in (average, summed):
        with pytest.raises(UntaxError, match="sum to 0 and cannot be normalised"):
            function({"weight": (1.0, -1.0), "normalize": True, "lambda": 1.0})


@given(
    st.lists(st.sampled_from([-1.0, 0.25, 0.5, 1.0, 2.0]), min_size=1, max_size=5),
    st.booleans(),
    st.integers(0, 5),
)
def test_election_is_mergekits(weights: list[float], normalize: bool, seed: int) -> None:
    from mergekit.merge_methods.generalized_task_arithmetic import get_mask

    stacked = (torch.stack(deltas(len(weights), seed=seed)) * 8).round() / 8  # sums are exact, and often 0
    factors = torch.tensor(weights, dtype=torch.float64)[:, None, None]
    weighted = stacked.double() * factors
    mask = get_mask((stacked * factors.float()).double(), method="sum")
    divisor = (factors * mask).sum(0)
    wanted = (weighted * mask).sum(0) / torch.where((divisor == 0) | (not normalize), 1.0, divisor)
    found = elect(stacked, weights, normalize=normalize).double()
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_ties_is_mergekits(density: float, rescale: bool) -> None:
    from mergekit.merge_methods import get
    from mergekit.merge_methods.base import TensorEntry, TensorGroup

    two = deltas(3)
    entries = [TensorEntry("base", BASE.double(), is_base=True)]
    entries += [TensorEntry(index, BASE.double() + delta.double()) for index, delta in enumerate(two)]
    keys = {"density": dict.fromkeys(range(3), density), "weight": {0: 1.0, 1: 0.5, 2: 2.0}}
    shared = {"normalize": True, "rescale": rescale, "lambda": 0.7, "int8_mask": False}
    wanted = get("ties").merge_group(TensorGroup(tuple(entries)), **keys, **shared) - BASE.double()
    given_ = {"density": (density,) * 3, "weight": (1.0, 0.5, 2.0), **shared}
    assert torch.allclose(run("ties", [*two], **given_).double(), wanted, atol=1e-6)


def test_ties_with_a_model_that_leaves_the_tensor_alone() -> None:
    two = deltas(2)
    given_ = {"density": (0.5,) * 3, "weight": (1.0,) * 3}
    with_none = run("ties", [two[0], None, two[1]], **given_)
    with_zero = run("ties", [two[0], torch.zeros(6, 10), two[1]], **given_)
    assert torch.equal(with_none, with_zero)


@given(st.integers(0, 20), st.sampled_from([0.1, 0.2, 0.5, 1.0]))
def test_ties_global_is_the_papers(seed: int, density: float) -> None:
    """Algorithm 1 by brute force: keep the largest of the whole vector, elect unweighted, mean of those that agree."""
    first, second = deltas(3, 6, 10, seed=seed), deltas(3, 4, 10, seed=seed + 100)
    chosen = method("ties_global")
    resolved = values("ties_global", density=(density,) * 3, **{"lambda": 0.5})
    jobs = [Job(InMemory([*tensors]), resolved) for tensors in (first, second)]
    limits = chosen.whole(iter(jobs))  # type: ignore[misc]
    vectors = [torch.cat([a.flatten(), b.flatten()]).double() for a, b in zip(first, second, strict=True)]
    keep = max(1, int(density * 100))
    trimmed = torch.stack([torch.where(v.abs() >= v.abs().sort(descending=True)[0][keep - 1], v, 0.0) for v in vectors])
    sign = trimmed.sum(0).sign()
    agree = (trimmed.sign() == sign) & (trimmed != 0)
    wanted = 0.5 * (trimmed * agree).sum(0) / agree.sum(0).clamp(min=1)
    found = [
        chosen.merge(Block(torch.stack(tensors), "t", slice(0, len(tensors[0])), (6, 10), resolved, 0, limits))
        for tensors in (first, second)
    ]
    assert torch.allclose(torch.cat([one.flatten() for one in found]).double(), wanted, atol=1e-6)


def test_global_trim_counts_the_elements_of_tensors_that_only_others_change() -> None:
    one, other = deltas(1, 4, 10)[0], deltas(1, 4, 10, seed=1)[0]
    resolved = values("ties_global", density=(0.25, 0.25))
    jobs = [Job(InMemory([one, other]), resolved), Job(InMemory([None, other]), resolved)]
    limits = method("ties_global").whole(iter(jobs))  # type: ignore[misc]
    assert limits[0] == float(one.abs().flatten().sort(descending=True)[0][19])


def test_ties_global_has_one_density_for_all_tensors() -> None:
    jobs = [
        Job(InMemory([*deltas(2)]), values("ties_global", density=densities)) for densities in ((0.2, 0.2), (0.2, 0.3))
    ]
    with pytest.raises(UntaxError, match="one density for all tensors"):
        method("ties_global").whole(iter(jobs))  # type: ignore[misc]


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("rescale", [False, True])
def test_dare_is_mergekits_for_the_same_mask(name: str, rescale: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from mergekit.merge_methods import get
    from mergekit.merge_methods.base import TensorEntry, TensorGroup

    two = deltas(2)
    tensor = InMemory([]).tensor
    masks = iter([keep_mask(42, tensor, model, (6, 10), 0.4).rows(slice(0, 6)) for model in range(2)])
    monkeypatch.setattr(torch, "bernoulli", lambda probabilities: next(masks))
    entries = [TensorEntry("base", BASE, is_base=True)]
    entries += [TensorEntry(index, BASE + delta) for index, delta in enumerate(two)]
    shared = {"normalize": False, "rescale": rescale, "lambda": 0.7, "int8_mask": False}
    keys = {"density": {0: 0.4, 1: 0.4}, "weight": {0: 1.0, 1: 0.5}}
    wanted = get(name).merge_group(TensorGroup(tuple(entries)), **keys, **shared) - BASE
    found = run(name, [*two], density=(0.4, 0.4), weight=(1.0, 0.5), **shared)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_dare_exact_keeps_the_expectation_of_each_element() -> None:
    """Over 4000 seeds the mean comes within five standard errors of the delta; mergekit's rescaling shrinks nothing."""
    (delta,) = deltas(1, 2, 10)
    resolved = values("dare_exact", density=(0.3,), weight=(1.0,))
    chosen = method("dare_exact")
    total = torch.zeros(2, 10, dtype=torch.float64)
    for seed in range(4000):
        statistics = chosen.statistics(Job(InMemory([delta]), resolved, seed))  # type: ignore[misc]
        block = Block(delta[None].clone(), "t", slice(0, 2), (2, 10), resolved, seed, statistics)
        total += chosen.merge(block).double()
    error = delta.double() * (0.7 / 0.3 / 4000) ** 0.5
    assert ((total / 4000 - delta).abs() <= 5 * error.abs()).all()


@pytest.mark.parametrize(("row_wise", "flatten"), [(False, True), (True, True), (False, False), (True, False)])
def test_nuslerp_is_mergekits(row_wise: bool, flatten: bool) -> None:
    from mergekit.merge_methods.nuslerp import nuslerp

    one, other = deltas(2)
    keys = {"weight": (1.0, 3.0), "nuslerp_row_wise": row_wise, "nuslerp_flatten": flatten}
    wanted = nuslerp(0.75, one.double(), other.double(), dim=0 if row_wise else -1, flatten=flatten)
    assert torch.allclose(run("nuslerp", [one, other], **keys).double(), wanted, atol=1e-6)


@pytest.mark.parametrize("size", [1e-3, 1.0])
def test_slerp_is_mergekits(size: float) -> None:
    """Nearly parallel weights, as after fine-tuning, and others."""
    from mergekit.merge_methods.slerp import slerp

    one, other = (size * delta for delta in deltas(2))
    pair = [(BASE + delta).double().flatten()[None] for delta in (one, other)]
    wanted = slerp(torch.tensor([0.3]), *pair)[0].view(6, 10) - BASE
    assert torch.allclose(run("slerp", [one, other], t=0.3).double(), wanted, atol=1e-6)


@given(st.integers(1, 40), st.integers(1, 3000), st.floats(0.01, 1), st.integers(0, 3), st.data())
def test_masks_do_not_depend_on_how_rows_are_taken(
    rows: int, columns: int, density: float, model: int, data: st.DataObject
) -> None:
    mask = keep_mask(1, "t", model, (rows, columns), density)
    cut = data.draw(st.integers(0, rows))
    whole = mask.rows(slice(0, rows))
    assert torch.equal(whole, torch.cat([mask.rows(slice(0, cut)), mask.rows(slice(cut, rows))]))
    assert torch.equal(whole, keep_mask(1, "t", model, (rows, columns), density).rows(slice(0, rows)))
    assert set(whole.flatten().tolist()) <= {0.0, 1.0}


def test_masks_have_their_density_and_are_independent() -> None:
    shape = (1500, 1000)  # several blocks
    one, other = (keep_mask(1, "t", model, shape, 0.3).rows(slice(0, 1500)) for model in range(2))
    error = (0.3 * 0.7 / one.numel()) ** 0.5
    assert abs(float(one.mean()) - 0.3) < 5 * error
    assert abs(float((one * other).mean()) - 0.09) < 5 * (0.09 * 0.91 / one.numel()) ** 0.5
    assert not torch.equal(one, keep_mask(2, "t", 0, shape, 0.3).rows(slice(0, 1500)))
    assert not torch.equal(one, keep_mask(1, "u", 0, shape, 0.3).rows(slice(0, 1500)))
    assert bool(keep_mask(1, "t", 0, shape, 1.0).rows(slice(0, 1500)).all())
