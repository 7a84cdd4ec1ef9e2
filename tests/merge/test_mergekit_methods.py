"""Merge methods of untax inside mergekit: against mergekit's own, against torch, and in slices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from untax.errors import UntaxError
from untax.merge.method import Block, Job, Method, Parameter

from .tiny_models import make_base, relative_error, weights

Known = Callable[[Method], None]


def ours(config: dict[str, Any], out: Path, *options: str) -> None:
    from untax.merge.mergekit_yaml import read_config, read_options, run

    out.mkdir()
    validated = read_config({"dtype": "float32", **config}, where="test")
    run(validated, read_options(["--quiet", *options]), yaml.safe_dump(config), out, where="test")


def inputs(folder: Path, *names: str, **parameters: Any) -> list[dict[str, Any]]:
    models = [f"{folder / 'base'}+{folder / name}" for name in names or ("a0", "a1")]
    return [{"model": model, **({"parameters": parameters} if parameters else {})} for model in models]


@pytest.fixture
def known() -> Iterator[Known]:
    """Makes mergekit know a method, until the test ends."""
    from mergekit.merge_methods import registry
    from mergekit.merge_methods.base import FunctionalGroupMergeMethod

    from untax.merge.mergekit_methods import Merging, _spec, register

    register()
    before = dict(registry._METHODS)
    yield lambda method: registry.register(FunctionalGroupMergeMethod(_spec(method), Merging(method)))
    registry._METHODS.clear()
    registry._METHODS.update(before)


def weighted_sum(block: Block) -> Any:
    import torch

    return torch.einsum("k,knc->nc", torch.tensor(block.values["weight"]), block.deltas) * block.values["lambda"]


SUM = (Parameter("weight", float, per_model=True), Parameter("lambda", float, default=1.0))


def test_a_weighted_sum_is_task_arithmetic(known: Known, models: Path, tmp_path: Path) -> None:
    known(Method("summed", SUM, merge=weighted_sum))
    listed = [
        {**entry, "parameters": {"weight": weight}} for entry, weight in zip(inputs(models), (0.25, 0.5), strict=True)
    ]
    for name in ("summed", "task_arithmetic"):
        keys = {"models": listed, "base_model": str(models / "base"), "parameters": {"lambda": 0.5}}
        ours({"merge_method": name, **keys}, tmp_path / name)
    base, found = weights(models / "base"), weights(tmp_path / "summed")
    assert relative_error(found, weights(tmp_path / "task_arithmetic"), base) < 1e-6
    assert all(found[name].equal(base[name]) for name in base if name.endswith(("norm.weight", "embed_tokens.weight")))


def test_filters_and_gradients_arrive_per_tensor(known: Known, models: Path, tmp_path: Path) -> None:
    known(Method("summed", SUM, merge=weighted_sum))
    value = [{"filter": "mlp", "value": [0.0, 1.0]}, {"value": 0.5}]
    keys = {"models": inputs(models, weight=value), "base_model": str(models / "base")}
    for name in ("summed", "task_arithmetic"):
        ours({"merge_method": name, **keys}, tmp_path / name)
    base = weights(models / "base")
    assert relative_error(weights(tmp_path / "summed"), weights(tmp_path / "task_arithmetic"), base) < 1e-6


@pytest.mark.parametrize(
    ("name", "parameters"), [("dare_exact", {"weight": 0.6, "density": 0.4}), ("ties_global", {"density": 0.4})]
)
def test_own_methods_as_they_are_streamed(
    name: str, parameters: dict[str, float], models: Path, tmp_path: Path
) -> None:
    from untax.merge.merge import Wish, merge

    keys = {"merge_method": name, "models": inputs(models, **parameters), "base_model": str(models / "base")}
    config = tmp_path / "merge.yaml"
    config.write_text(yaml.safe_dump({**keys, "dtype": "float32"}))
    merge(config, tmp_path / "streamed", ["--random-seed=7"], Wish(engine="stream"), say=lambda _: None)
    ours(keys, tmp_path / "ours", "--random-seed=7")
    streamed, found, base = (weights(folder) for folder in (tmp_path / "streamed", tmp_path / "ours", models / "base"))
    # entry - base has not the last bits of the delta, so an element at the threshold may fall on its other side.
    assert relative_error(found, streamed, base) < 1e-2
    differs = sum(int(((found[key] - streamed[key]).abs() > 1e-6).sum()) for key in base)
    assert differs <= 4


def test_everything_that_a_method_may_ask_for(known: Known, own_models: Path, tmp_path: Path) -> None:
    """``whole`` sees every changed tensor once per merge, ``statistics`` the base; the seed is the merge's."""
    import torch

    calls: list[str] = []
    make_base(own_models / "full", own_models / "base", seed=5)

    def whole(jobs: Iterator[Job]) -> float:
        calls.append("whole")
        peaks = []
        for job in jobs:
            calls.append(job.deltas.tensor)
            for rows in job.deltas.blocks():
                assert job.base is not None
                peaks.append(float((job.deltas.rows(1, rows).abs() + job.base(rows).abs()).max()))
        return max(peaks)

    def statistics(job: Job) -> tuple[float, Any, int]:
        assert job.base is not None
        assert [job.deltas.has(model) for model in range(2)][1]
        changed = torch.cat([job.base(rows) for rows in job.deltas.blocks()])
        return job.whole, changed.mean(), job.seed

    def merge_rows(block: Block) -> Any:
        peak, mean, seed = block.statistics
        assert block.base is not None
        assert (seed, block.seed) == (11, 11)
        return peak * block.base + mean + 0 * block.deltas[0]

    known(Method("curious", (), merge=merge_rows, statistics=statistics, whole=whole, needs_base=True))
    listed = [*inputs(own_models, "a0"), {"model": str(own_models / "full")}]
    ours(
        {"merge_method": "curious", "models": listed, "base_model": str(own_models / "base")},
        tmp_path / "out",
        "--random-seed=11",
    )
    base, full = weights(own_models / "base"), weights(own_models / "full")
    assert calls == ["whole", *calls[1:]]
    assert sorted(calls[1:]) == sorted(base)
    peak = max(float(((full[name] - base[name]).abs() + base[name].abs()).max()) for name in base)
    wanted = {name: tensor + peak * tensor + tensor.mean() for name, tensor in base.items()}
    assert relative_error(weights(tmp_path / "out"), wanted, base) < 1e-6


def test_slices_name_the_tensors_that_they_take(known: Known, models: Path, tmp_path: Path) -> None:
    seen: dict[str, bool] = {}

    def note(job: Job) -> None:
        seen[job.deltas.tensor] = job.deltas.has(0)

    known(Method("noted", SUM, merge=weighted_sum, statistics=note))
    sources = [
        {"model": model, "layer_range": [1, 2]}
        for model in (f"{models / 'base'}+{models / 'a0'}", f"{models / 'base'}")
    ]
    keys = {"merge_method": "noted", "base_model": str(models / "base"), "parameters": {"weight": 1.0}}
    ours({**keys, "slices": [{"sources": sources}]}, tmp_path / "out")
    base = weights(models / "base")
    assert set(seen) == {name for name in base if "layers.0." not in name}
    assert {name for name, has in seen.items() if has} == {name for name in seen if "proj" in name}
    sources[0]["layer_range"] = [0, 1]
    with pytest.raises(UntaxError, match="different layers, so their difference is no delta"):
        ours({**keys, "slices": [{"sources": sources}]}, tmp_path / "mixed")


def test_fisher_in_slices(known: Known, models: Path, tmp_path: Path) -> None:
    """Layer 1 of the inputs becomes layer 0: its Fisher is looked up by the input's name."""
    import torch
    from mergekit.merge_methods import registry
    from safetensors.torch import save_file

    from untax.merge.methods.fisher import fisher

    if "fisher" not in registry._METHODS:
        known(fisher)
    base = weights(models / "base")
    generator = torch.Generator().manual_seed(3)
    sources = []
    for name in ("a0", "a1"):
        precision = {key: torch.rand(base[key].shape, generator=generator) for key in base if "proj" in key}
        save_file(precision, tmp_path / f"{name}.safetensors")
        parameters = {"fisher": str(tmp_path / f"{name}.safetensors")}
        sources.append({"model": f"{models / 'base'}+{models / name}", "layer_range": [1, 2], "parameters": parameters})
    slices = [{"sources": [*sources, {"model": str(models / "base"), "layer_range": [1, 2]}]}]
    ours({"merge_method": "fisher", "base_model": str(models / "base"), "slices": slices}, tmp_path / "out")
    found = weights(tmp_path / "out")
    for key in (key for key in base if "layers.1." in key and "proj" in key):
        total = mean = torch.zeros(base[key].shape)
        for name in ("a0", "a1"):
            own = weights_of(tmp_path / f"{name}.safetensors")[key]
            total, mean = total + own, mean + own * adapted(models, name, key)
        torch.testing.assert_close(found[key.replace("layers.1.", "layers.0.")], mean / total, rtol=1e-4, atol=1e-5)


def weights_of(file: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(file)


def adapted(models: Path, name: str, key: str) -> Any:
    from untax.adapters.stored import StoredAdapter

    return weights(models / "base")[key] + dict(StoredAdapter(models / name).deltas())[key]


def test_what_mergekit_checks(known: Known, models: Path, tmp_path: Path) -> None:
    known(Method("paired", SUM, merge=weighted_sum, models=2))
    keys = {"merge_method": "paired", "models": inputs(models, weight=1.0)}
    with pytest.raises(UntaxError, match="requires a base input"):
        ours(keys, tmp_path / "one")
    with pytest.raises(UntaxError, match="requires at least 2 non-base inputs"):
        ours({**keys, "models": inputs(models, "a0", weight=1.0), "base_model": str(models / "base")}, tmp_path / "two")
    with pytest.raises(UntaxError, match="Missing required parameter weight"):
        ours({**keys, "models": inputs(models), "base_model": str(models / "base")}, tmp_path / "three")


def test_mergekits_functions_on_tensors(known: Known) -> None:
    import torch
    from mergekit.merge_methods import merge_tensors

    known(Method("summed", SUM, merge=weighted_sum))
    known(Method("greedy", (), merge=lambda block: block.deltas[0], whole=list))
    tensors = [torch.randn(3, 4, 2, dtype=torch.bfloat16) for _ in range(3)]
    found = merge_tensors(tensors, "summed", base_index=0, parameters={"weight": [1.0, 0.5]})
    base, one, other = (tensor.float() for tensor in tensors)
    assert found.dtype == torch.bfloat16
    assert found.equal((base + ((one - base) + 0.5 * (other - base))).bfloat16())
    with pytest.raises(UntaxError, match="needs all tensors"):
        merge_tensors(tensors, "greedy", base_index=0)


def test_every_registered_method_is_known_with_its_parameters() -> None:
    from mergekit.merge_methods.registry import get

    from untax.merge.mergekit_methods import register
    from untax.plugins import registry

    register()
    for name, method in registry("merge_methods").items():
        if not method.base_is_model:
            assert {parameter.name for parameter in method.parameters} <= {
                one.name for one in get(name).spec.parameters
            }
