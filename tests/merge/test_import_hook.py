"""The hook for plain mergekit-yaml, in throw-away environments with Python processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

from .tiny_models import weights

PACKAGE = Path(__file__).resolve().parents[2] / "plugin"
METHODS = """
from untax import hookimpl
from untax.merge.method import Method, Parameter

def mean(block):
    return block.deltas.mean(0) * block.values["factor"]

@hookimpl
def merge_methods():
    return {"plain_mean": Method("plain_mean", (Parameter("factor", float, default=1.0),), merge=mean)}
"""


class Environment:
    """A virtual environment that sees the packages of the running one, and untax from this repository."""

    def __init__(self, folder: Path, *, packages: bool = True):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.python = folder / "bin" / "python"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.site = folder / "lib" / version / "site-packages"
        paths = [str(PACKAGE), *([sysconfig.get_path("purelib")] if packages else [])]
        (self.site / "paths.pth").write_text("\n".join(paths) + "\n")
        self.hook = self.site / "untax_mergekit.pth"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        return subprocess.run([self.python, *arguments], capture_output=True, text=True, env=environment, check=False)

    def python_says(self, program: str) -> str:
        done = self.run("-c", program)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return done.stdout.strip()

    def untax(self, *arguments: str) -> str:
        argv = ["untax", "mergekit", *arguments]
        return self.python_says(f"import sys; sys.argv = {argv}; from untax.cli.main import main; main()")

    def add_package(self, name: str, version: str, files: dict[str, str], entry_points: str = "") -> None:
        for path, text in files.items():
            (self.site / path).parent.mkdir(exist_ok=True)
            (self.site / path).write_text(text)
        information = self.site / f"{name}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (information / "entry_points.txt").write_text(entry_points)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    made = Environment(tmp_path_factory.mktemp("environment") / "venv")
    made.add_package("plain_methods", "1.0", {"plain_methods.py": METHODS}, "[untax]\nplain_methods = plain_methods\n")
    return made


def merged_by_mergekit(environment: Environment, config: dict[str, Any], out: Path) -> subprocess.CompletedProcess[str]:
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    return environment.run("-m", "mergekit.scripts.run_yaml", str(path), str(out), "--quiet", "--no-copy-tokenizer")


def inputs(models: Path, **parameters: Any) -> dict[str, Any]:
    names = [{"model": f"{models / 'base'}+{models / name}", "parameters": parameters} for name in ("a0", "a1")]
    return {"models": names, "base_model": str(models / "base"), "dtype": "float32"}


def test_mergekit_yaml_with_and_without_the_hook(environment: Environment, models: Path, tmp_path: Path) -> None:
    """Fisher merging, a method of a third package, and adapters without a cache; afterwards mergekit is as it was."""
    mean = {**inputs(models, weight=1.0), "merge_method": "plain_mean", "parameters": {"factor": 0.5}}
    ties = {**inputs(models, weight=1.0, density=0.5), "merge_method": "ties"}
    configs = {"mean": mean, "ties": ties, "fisher": with_fisher(models, tmp_path / "fishers")}
    assert environment.untax("enable").startswith(f"Wrote {environment.hook}")
    for name, config in configs.items():
        done = merged_by_mergekit(environment, config, tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert "untax:" not in done.stderr
    made = {*configs, *(f"{name}.yaml" for name in configs), "fishers"}
    assert {path.name for path in tmp_path.iterdir()} == made
    for name in ("ties", "fisher"):
        assert bytes_of(tmp_path / name) == bytes_of(merged_by_untax(configs[name], tmp_path / f"our-{name}"))
    assert_mean(weights(tmp_path / "mean"), models)

    assert environment.untax("disable") == f"Removed {environment.hook}"
    whole = {**configs["fisher"], "models": [{"model": str(models / "base"), "parameters": {"fisher": "none"}}]}
    done = merged_by_mergekit(environment, whole, tmp_path / "again")
    assert done.returncode != 0
    assert "Unimplemented merge method fisher" in done.stderr


def with_fisher(models: Path, folder: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    config = {**inputs(models), "merge_method": "fisher"}
    for seed, entry in enumerate(config["models"]):
        generator = torch.Generator().manual_seed(seed)
        base = weights(models / "base")
        precision = {name: torch.rand(tensor.shape, generator=generator) for name, tensor in base.items()}
        save_file(precision, folder / f"{seed}.safetensors")
        entry["parameters"] = {"fisher": str(folder / f"{seed}.safetensors")}
    return config


def merged_by_untax(config: dict[str, Any], out: Path) -> Path:
    from untax.merge.mergekit_yaml import read_config, read_options, run

    out.mkdir()
    run(read_config(config, where="test"), read_options(["--quiet"]), "", out, where="test")
    return out


def bytes_of(model: Path) -> bytes:
    return (model / "model.safetensors").read_bytes()


def assert_mean(found: Any, models: Path) -> None:
    from untax.adapters.base import StoredModel
    from untax.adapters.changes import read_changes
    from untax.adapters.stored import StoredAdapter

    base = weights(models / "base")
    changes = [read_changes(StoredAdapter(models / name), StoredModel(models / "base")) for name in ("a0", "a1")]
    for name, tensor in base.items():
        deltas = [change[name].merged(tensor) - tensor for change in changes if name in change]
        wanted = tensor + sum(deltas) / 4 if deltas else tensor
        assert float((found[name] - wanted).abs().max()) < 1e-6


def test_start_imports_nothing(environment: Environment) -> None:
    """No package and no module of untax; only the finder is there, once."""
    loaded = "import sys; print(sorted(name.partition('.')[0] for name in sys.modules))"
    without = environment.python_says(loaded)
    environment.untax("enable")
    assert environment.python_says(loaded) == without
    found = "import sys; print([type(finder).__name__ for finder in sys.meta_path].count('MergekitFinder'))"
    assert environment.python_says(found) == "1"
    assert environment.run("-S", "-c", found).stdout.strip() == "0"
    imported = "import sys, json, click, yaml; print('torch' in sys.modules, 'untax' in sys.modules)"
    assert environment.python_says(imported) == "False False"
    environment.untax("disable")
    assert environment.python_says(found) == "0"


@pytest.fixture
def bare(tmp_path: Path) -> Environment:
    """With a mergekit of another version, whose ``plan`` imports nothing."""
    made = Environment(tmp_path / "bare", packages=False)
    made.add_package("mergekit", "0.2.0", {"mergekit/__init__.py": "", "mergekit/plan.py": "planned = True\n"})
    write_hook(made, PACKAGE / "untax" / "merge" / "import_hook.py")
    return made


def write_hook(environment: Environment, source: Path) -> None:
    from untax.merge import hook_file

    environment.hook.write_text(hook_file._TEXT.format(mark=hook_file._MARK, path=str(source)))


IMPORT = "import mergekit.plan, sys; print(mergekit.plan.planned, 'untax' in sys.modules)"


def test_another_version_of_mergekit_is_left_alone(bare: Environment) -> None:
    done = bare.run("-c", IMPORT)
    assert done.stdout.strip() == "True False"
    assert done.stderr.count("\n") == 1
    assert "it knows mergekit 0.1.5, and this is 0.2.0" in done.stderr


def test_untax_that_cannot_be_imported_does_not_stop_mergekit(bare: Environment) -> None:
    (bare.site / "mergekit-0.2.0.dist-info/METADATA").write_text("Name: mergekit\nVersion: 0.1.5\n")
    (bare.site / "paths.pth").unlink()
    done = bare.run("-c", IMPORT)
    assert done.stdout.strip() == "True False"
    assert done.stderr.count("\n") == 1
    assert "No module named 'untax'" in done.stderr


def test_untax_that_is_gone_leaves_no_error(bare: Environment) -> None:
    write_hook(bare, bare.site / "nowhere" / "import_hook.py")
    assert bare.python_says(IMPORT) == "True False"


def test_a_mergekit_that_is_not_there_stays_missing(bare: Environment) -> None:
    (bare.site / "mergekit/plan.py").unlink()
    done = bare.run("-c", "import mergekit.plan")
    assert "No module named 'mergekit.plan'" in done.stderr
    assert "untax:" not in done.stderr
