"""``untax doctor``: exit codes and remedies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from untax.cli import doctor

Doctor = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Doctor:
    monkeypatch.setenv("PATH", str(Path(shutil.which("sh") or "/bin/sh").parent))
    return lambda *recipes: CliRunner().invoke(doctor.command, list(map(str, recipes)))


def state(result: Result, about: str) -> str:
    return next(line.split()[0] for line in result.output.splitlines() if line.split()[1:2] == [about])


def test_this_environment_is_ready(run: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run()
    assert result.exit_code == 0, result.output
    assert [state(result, name) for name in ("python", "axolotl", "mergekit", "lm-eval", "untax")] == ["ok"] * 5
    assert metadata.version("mergekit") in result.output
    assert state(result, "PATH") == "warn"  # this environment's bin is not on it
    assert state(result, "telemetry") == "ok"
    monkeypatch.delenv("AXOLOTL_DO_NOT_TRACK")
    again = run()
    assert state(again, "telemetry") == "warn"
    assert "-> export AXOLOTL_DO_NOT_TRACK=1" in again.output
    assert again.exit_code == 0


def test_missing_and_unsupported_packages(run: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "trl":
            raise metadata.PackageNotFoundError(name)
        return "0.2.0" if name == "mergekit" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    result = run()
    assert result.exit_code == 2
    assert [state(result, name) for name in ("trl", "mergekit", "peft")] == ["fail", "fail", "ok"]
    assert "0.2.0, supported is ==0.1.5" in result.output
    assert '-> pip install "mergekit==0.1.5"' in result.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("disperse_clusters: 4\ndelta_l1: 1e-4\nplugins: [untax.DispersePlugin]\n", "keys delta_l1 would be ignored"),
        ("delta_11: 1e-4\nplugins: [untax.DeltaPenaltyPlugin]\n", "unknown key delta_11"),
        ("delta_l1: 1e-4\nplugins: [untax.DeltaPenaltyPlugin]\n", "write 0.0001"),
        ("delta_l1: 0.1\npeft_use_dora: true\nplugins: [untax.DeltaPenaltyPlugin]\n", "DoRA"),
        ("plugins: [untax.DeltaPenaltyPlugn]\n", "untax has no DeltaPenaltyPlugn"),
        ("delta_l1: 0.1\nplugins: [other.DeltaPenaltyPlugin]\n", "no module 'other'"),
        ("plugins: [DeltaPenaltyPlugin]\n", "of the form module.Class"),
        ("- a list\n", "is not a mapping"),
        ("a: [\n", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_recipe_with_keys_that_axolotl_would_drop(text: str | None, message: str, run: Doctor, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    if text is not None:
        recipe.write_text(text)
    result = run(recipe)
    assert result.exit_code == 2
    assert state(result, "recipe") == "fail"
    assert message in result.output


def test_sound_recipe(run: Doctor, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("adapter: lora\ndelta_l1: 0.0001\nplugins: [untax.DeltaPenaltyPlugin]\n")
    result = run(tmp_path / "recipe.yaml")
    assert result.exit_code == 0
    assert state(result, "recipe") == "ok"


def test_a_plugin_whose_import_fails(run: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Axolotl 0.19 prints the error and trains without the plugin."""
    (tmp_path / "halfway.py").write_text("import no_such_package\n")
    (tmp_path / "broken.py").write_text("raise OSError('libcudart')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("plugins: [halfway.Plugin, broken.Plugin]\n")
    result = run(tmp_path / "recipe.yaml")
    assert result.exit_code == 2
    assert "halfway.Plugin cannot be loaded (it needs no_such_package)" in result.output
    assert "broken.Plugin cannot be loaded (OSError: libcudart)" in result.output


def test_all_that_is_wrong_is_said_at_once(run: Doctor, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("delta_l1: -1\ndelta_l3: 1\ndisperse_clusters: 1\n")
    result = run(tmp_path / "recipe.yaml")
    assert [line.split()[0] for line in result.output.splitlines() if line.split()[1:2] == ["recipe"]] == ["fail"] * 3
