"""Merges by files of `untax gram` and `untax fisher`, through both engines, against the formulas in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from untax.adapters.gram import Grams
from untax.adapters.statistics import Diagonal
from untax.adapters.stored import StoredAdapter
from untax.errors import UntaxError
from untax.fisher.fisher import Settings, fisher
from untax.fisher.gram import gram
from untax.fisher.inputs import Data, Reading
from untax.fisher.model import Model

from .tiny_models import Config, untax_merge, weights

STORIES = "\n\n".join(f"Lily had {count} red balls and {count + 1} blue ones in her box." for count in range(12))


@pytest.fixture
def statistics(models: Path, tmp_path: Path) -> dict[str, list[Path]]:
    """Of each adapter on its base: on the same texts, but what later layers read differs."""
    (tmp_path / "stories.txt").write_text(STORIES)
    data = Data(tmp_path / "stories.txt", prompt=lambda row: "")
    made: dict[str, list[Path]] = {"gram": [], "fisher": []}
    for name in ("a0", "a1"):
        model = Model(str(models / "base"), models / "base", adapter=models / name)
        options: dict[str, Any] = {"device": "cpu", "say": lambda text: None}
        made["gram"].append(
            gram(model, data, tmp_path / f"{name}.gram.safetensors", Reading(samples=12), **options).path
        )
        out = tmp_path / f"{name}.fisher.safetensors"
        made["fisher"].append(fisher(model, data, out, Settings(samples=12), **options).path)
    return made


def by_gram(files: list[Path], name: str, deltas: list[Any]) -> Any:
    found = [Grams(path).gram(name).double() for path in files]
    shrunk = [0.9 * one + 0.1 * torch.diag(one.diagonal()) for one in found]
    total = sum(delta @ one for delta, one in zip(deltas, shrunk, strict=True))
    return torch.linalg.solve(sum(shrunk), total, left=False)


def by_fisher(files: list[Path], name: str, deltas: list[Any]) -> Any:
    found = [Diagonal(path).rows(name, slice(None)).double() for path in files]
    return sum(one * delta for one, delta in zip(found, deltas, strict=True)) / sum(found)


@pytest.mark.parametrize("engine", ["stream", "mergekit"])
@pytest.mark.parametrize(("method", "key", "formula"), [("regmean", "gram", by_gram), ("fisher", "fisher", by_fisher)])
def test_a_merge_is_the_formula(
    models: Path,
    statistics: dict[str, list[Path]],
    config: Config,
    tmp_path: Path,
    engine: str,
    method: str,
    key: str,
    formula: Any,
) -> None:
    listed = [
        {"model": f"{models / 'base'}+{models / name}", "parameters": {key: str(path)}}
        for name, path in zip(("a0", "a1"), statistics[key], strict=True)
    ]
    path = config(merge_method=method, base_model=str(models / "base"), dtype="float32", models=listed)
    untax_merge(path, tmp_path / "out", engine=engine)
    base, found = weights(models / "base"), weights(tmp_path / "out")
    deltas = [dict(StoredAdapter(models / name).deltas()) for name in ("a0", "a1")]
    assert deltas[0].keys() == deltas[1].keys()
    compared = 0
    for name, value in base.items():
        change = found[name].double() - value.double()
        if name not in deltas[0]:
            assert not change.any()
        elif name in Grams(statistics["gram"][0]):
            wanted = formula(statistics[key], name, [one[name].double() for one in deltas])
            torch.testing.assert_close(change, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())
            compared += 1
    assert compared > 3


def test_a_changed_file_of_statistics_makes_another_merge(
    models: Path, statistics: dict[str, list[Path]], config: Config, tmp_path: Path
) -> None:
    first, second = statistics["fisher"]
    listed = [
        {"model": f"{models / 'base'}+{models / name}", "parameters": {"fisher": str(path)}}
        for name, path in zip(("a0", "a1"), (first, second), strict=True)
    ]
    path = config(merge_method="fisher", base_model=str(models / "base"), dtype="float32", models=listed)
    untax_merge(path, tmp_path / "out")
    assert untax_merge(path, tmp_path / "out") == [f"{tmp_path / 'out'} holds this merge already: nothing to do."]
    again = load_file(first)
    save_file({name: 2 * value for name, value in again.items()}, first, metadata=Diagonal(first).metadata)
    with pytest.raises(UntaxError, match="another merge, with other inputs"):
        untax_merge(path, tmp_path / "out")


@pytest.mark.parametrize("dry_run", [False, True])
def test_files_that_are_swapped_or_missing_are_refused_before_anything_is_written(
    dry_run: bool, models: Path, statistics: dict[str, list[Path]], config: Config, tmp_path: Path
) -> None:
    def merged(first: Path, second: Path) -> Path:
        listed = [
            {"model": f"{models / 'base'}+{models / name}", "parameters": {"fisher": str(path)}}
            for name, path in zip(("a0", "a1"), (first, second), strict=True)
        ]
        return config(merge_method="fisher", base_model=str(models / "base"), models=listed)

    one, other = statistics["fisher"]
    for path in (merged(other, one), merged(one, tmp_path / "none.safetensors")):
        with pytest.raises(UntaxError):
            untax_merge(path, tmp_path / "out", dry_run=dry_run)
        assert not (tmp_path / "out").exists()
    untax_merge(merged(one, other), tmp_path / "out", dry_run=dry_run)
