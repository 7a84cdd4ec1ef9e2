"""Writing a run folder: nothing edited by hand is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from untax.demo.demo import demo_spec
from untax.errors import UntaxError
from untax.recipes.paths import rebased, seen_from_run
from untax.recipes.write import write_run_folder


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_second_writing_changes_nothing(tmp_path: Path):
    write_run_folder(demo_spec(), tmp_path / "run")
    before = contents(tmp_path / "run")
    times = {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in before}
    write_run_folder(demo_spec(), tmp_path / "run")
    assert contents(tmp_path / "run") == before
    assert {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in before} == times


def test_an_edited_yaml_is_kept_unless_forced(tmp_path: Path):
    write_run_folder(demo_spec(), tmp_path)
    edited = tmp_path / "recipes/sft.yaml"
    edited.write_text(edited.read_text() + "max_steps: 3\n")
    with pytest.raises(UntaxError, match=r"recipes/sft\.yaml"):
        write_run_folder(demo_spec(), tmp_path)
    assert "max_steps: 3" in edited.read_text()
    write_run_folder(demo_spec(), tmp_path, force=True)
    assert "max_steps: 3" not in edited.read_text()


def test_another_run_in_the_folder_is_refused(tmp_path: Path):
    write_run_folder(demo_spec(), tmp_path)
    other = demo_spec().model_copy(update={"seed": 43})
    before = contents(tmp_path)
    with pytest.raises(UntaxError, match="another run"):
        write_run_folder(other, tmp_path)
    assert contents(tmp_path) == before


def test_an_output_path_that_is_a_file(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UntaxError):
        write_run_folder(demo_spec(), tmp_path / "file")


def test_local_paths_are_relative_to_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    assert seen_from_run("data.jsonl", Path("deep/run"), where="x") == "../../data.jsonl"
    assert seen_from_run("org/name", Path("run"), where="x") == "org/name"
    for missing in ("missing.jsonl", "./missing", "a/b/c", "/nowhere"):
        with pytest.raises(UntaxError, match="no such file"):
            seen_from_run(missing, Path("run"), where="--dataset")


def test_a_spec_that_moves_takes_its_paths_along(tmp_path: Path):
    old, new = tmp_path / "old", tmp_path / "deep" / "new"
    old.mkdir()
    (old / "base").mkdir()
    (old / "data").mkdir()
    (old / "data/sft.jsonl").write_text("{}\n")
    moved = rebased(demo_spec(), old, new)
    assert moved.base == "../../old/base"
    assert moved.sft is not None
    assert moved.sft[0]["path"] == "../../old/data/sft.jsonl"
    assert moved.preference is not None
    assert moved.preference[0]["path"] == "data/preference.jsonl"  # not there: may be a hub id
