"""Files of statistics belong to the models that they were made from: in the check itself, and through mergekit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tiny_adapters import write_adapter
from untax.adapters.change_kinds import LowRankChange
from untax.adapters.stored import ADAPTER_FILES, StoredAdapter
from untax.errors import UntaxError
from untax.manifest import digest_files
from untax.merge.deltas import TensorDeltas, opener
from untax.merge.method import Job, Method
from untax.merge.methods.fisher import fisher
from untax.merge.methods.regmean import regmean
from untax.merge.tensor_job import TensorJob

from .statistic_deltas import InMemory, save
from .tiny_models import weights

NAME = "q_proj.weight"
METHODS = [(fisher, "fisher"), (regmean, "gram")]


@pytest.fixture
def adapters(tmp_path: Path) -> tuple[StoredAdapter, StoredAdapter]:
    folders = [write_adapter(tmp_path / name, {"q_proj": ([[1.0]] * 4, [[value] * 4])}) for name, value in PAIR.items()]
    return StoredAdapter(folders[0]), StoredAdapter(folders[1])


PAIR = {"sft": 1.0, "dpo": 2.0}


def made(path: Path, adapter: StoredAdapter | None) -> str:
    """A file of either kind that says what it was made from."""
    inputs = {"base": "b" * 64}
    if adapter is not None:
        inputs["adapter"] = digest_files(adapter.folder, ADAPTER_FILES)
    return save(path, {NAME: torch.ones(4, 4)}, **inputs)


def check(method: Method, key: str, paths: tuple[str, ...], adapters: tuple[StoredAdapter | None, ...]) -> None:
    shared = {"weight": (1.0,) * len(paths)} if method is fisher else {"shrink": 0.9}
    deltas = InMemory(NAME, (torch.ones(4, 4),) * len(paths))
    assert method.check is not None
    method.check([Job(deltas, {key: paths, **shared}, adapters=adapters)])


@pytest.mark.parametrize(("method", "key"), METHODS)
def test_a_file_of_another_adapter_is_refused(
    tmp_path: Path, adapters: tuple[StoredAdapter, StoredAdapter], method: Method, key: str
) -> None:
    own = tuple(made(tmp_path / f"{number}.safetensors", one) for number, one in enumerate(adapters))
    check(method, key, own, adapters)
    with pytest.raises(UntaxError, match=r"another adapter than .*sft, whose model .*: that of .*dpo") as error:
        check(method, key, own[::-1], adapters)
    assert error.value.where == f"{own[1]}, key {key}"
    assert f"untax {key} BASE+{adapters[0].folder}" in str(error.value.fix)
    write_adapter(adapters[1].folder, {"q_proj": ([[1.0]] * 4, [[3.0] * 4])})
    with pytest.raises(UntaxError, match="before it was trained again"):
        check(method, key, own, (adapters[0], StoredAdapter(adapters[1].folder)))


@pytest.mark.parametrize(("method", "key"), METHODS)
def test_one_file_for_two_models_is_refused(
    tmp_path: Path,
    adapters: tuple[StoredAdapter, StoredAdapter],
    monkeypatch: pytest.MonkeyPatch,
    method: Method,
    key: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = made(tmp_path / "of-the-base.safetensors", None)
    with pytest.raises(UntaxError, match=r"two models, .*sft and .*dpo"):
        check(method, key, (path, "./of-the-base.safetensors"), adapters)
    with pytest.raises(UntaxError, match="two models, model 0 and model 1"):
        check(method, key, (path, path), ())


@pytest.mark.parametrize(("method", "key"), METHODS)
def test_what_cannot_be_told_is_accepted(
    tmp_path: Path, adapters: tuple[StoredAdapter, StoredAdapter], method: Method, key: str
) -> None:
    """Files that name no adapter, and models whose adapter is not known."""
    plain = made(tmp_path / "base.safetensors", None), save(tmp_path / "x.safetensors", {NAME: torch.ones(4, 4)})
    check(method, key, plain, adapters)
    own = tuple(made(tmp_path / f"{number}.safetensors", one) for number, one in enumerate(adapters))
    check(method, key, own[::-1], (None, None))
    check(method, key, own[::-1], ())


def test_a_tensors_job_knows_the_adapters(adapters: tuple[StoredAdapter, StoredAdapter]) -> None:
    first = adapters[0]
    change = LowRankChange(first, first.layers[0], NAME, (4, 4), 2.0)
    deltas = TensorDeltas(NAME, (4, 4), [change, None], lambda rows: torch.zeros(4, 4)[rows], opener(1))
    assert TensorJob(fisher, deltas, {}, 0, (1.0,)).as_job().adapters == (first, None)


@pytest.mark.parametrize(("method", "key"), METHODS)
def test_inside_mergekit(models: Path, tmp_path: Path, method: Method, key: str) -> None:
    from untax.merge.mergekit_methods import register
    from untax.merge.mergekit_yaml import read_config, read_options, run

    register()
    base = weights(models / "base")
    names = [name for name, value in base.items() if "self_attn.q_proj" in name]

    def made_from(adapter: str) -> str:
        digest = digest_files(models / adapter, ADAPTER_FILES)
        return save(tmp_path / f"{adapter}.safetensors", {name: base[name] ** 2 for name in names}, adapter=digest)

    def merge(*files: str) -> None:
        listed: list[dict[str, Any]] = [
            {"model": f"{models / 'base'}+{models / name}", "parameters": {key: file}}
            for name, file in zip(("a0", "a1"), files, strict=True)
        ]
        config = {"merge_method": method.name, "base_model": str(models / "base"), "models": listed, "dtype": "float32"}
        out = tmp_path / f"out-{Path(files[0]).stem}"
        out.mkdir()
        options = read_options(["--quiet"])
        run(read_config(config, where="test"), options, yaml.safe_dump(config), out, where="test")

    first, second = made_from("a0"), made_from("a1")
    merge(first, second)
    with pytest.raises(UntaxError, match="made from another adapter than"):
        merge(second, first)
