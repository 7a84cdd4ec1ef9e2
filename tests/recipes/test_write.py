"""Writing a run folder: nothing edited by hand is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from untax.demo.demo import demo_spec
from untax.errors import UntaxError
from untax.manifest import digest_bytes
from untax.recipes.arms import Dtm
from untax.recipes.graph import Layout
from untax.recipes.paths import rebased, seen_from_run
from untax.recipes.spec import RunSpec, check_spec, read_spec
from untax.recipes.write import RECORD, spec_text, write_run_folder


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
    for _ in range(2):
        assert write_run_folder(demo_spec(), tmp_path).kept == ("recipes/sft.yaml",)
        assert "max_steps: 3" in edited.read_text()
    write_run_folder(demo_spec(), tmp_path, force=True)
    assert "max_steps: 3" not in edited.read_text()


def shrunk():
    """The demo with two clusters, and without PAFT and what is its alone."""
    content = demo_spec().model_dump(exclude_none=True)
    arms = {"vanilla": content["arms"]["vanilla"], "dtm": {**content["arms"]["dtm"], "clusters": 2}}
    return check_spec({**content, "arms": arms}, where="test")


def edit_spec(folder: Path, spec: RunSpec) -> Path:
    """What a user does: another recipe, with a remark."""
    path = folder / "untax.yaml"
    path.write_text(spec_text(spec) + "# my remark\n")
    return path


def test_an_edited_recipe_expands_again_and_keeps_its_comments(tmp_path: Path):
    write_run_folder(demo_spec(), tmp_path)
    assert (tmp_path / "recipes/sft-sparse.yaml").exists()
    source = edit_spec(tmp_path, shrunk())
    expanded = write_run_folder(read_spec(source), tmp_path, source=source)
    assert source.read_text().endswith("# my remark\n")
    left = {name for name in contents(tmp_path) if name.startswith(("recipes/", "mergekit_configs/"))}
    assert left == set(expanded.plan.files)
    assert "disperse_clusters: 2" in (tmp_path / "recipes/cluster-0.yaml").read_text()
    before = contents(tmp_path)
    write_run_folder(read_spec(source), tmp_path, source=source)
    assert contents(tmp_path) == before


def test_expanding_again_keeps_what_was_edited_by_hand(tmp_path: Path):
    write_run_folder(demo_spec(), tmp_path)
    for name in ("cluster-0", "cluster-3"):
        (tmp_path / f"recipes/{name}.yaml").write_text("mine: 1\n")
    source = edit_spec(tmp_path, shrunk())
    assert write_run_folder(read_spec(source), tmp_path, source=source).kept == ("recipes/cluster-0.yaml",)
    before = contents(tmp_path)
    assert before["recipes/cluster-0.yaml"] == before["recipes/cluster-3.yaml"] == "mine: 1\n"
    assert "disperse_clusters: 2" in before["recipes/cluster-1.yaml"]
    write_run_folder(read_spec(source), tmp_path, source=source, force=True)
    after = contents(tmp_path)
    assert after["recipes/cluster-0.yaml"] != "mine: 1\n"
    assert after["recipes/cluster-3.yaml"] == "mine: 1\n"
    assert "recipes/cluster-2.yaml" not in after
    assert after["untax.yaml"].endswith("# my remark\n")


@pytest.mark.parametrize("record", [None, "{", "[]"])
def test_without_a_record_what_differs_is_refused(tmp_path: Path, record: str | None):
    write_run_folder(demo_spec(), tmp_path)
    (tmp_path / RECORD).unlink() if record is None else (tmp_path / RECORD).write_text(record)
    source = edit_spec(tmp_path, shrunk())
    with pytest.raises(UntaxError, match=r"cluster-0\.yaml"):
        write_run_folder(read_spec(source), tmp_path, source=source)
    write_run_folder(read_spec(source), tmp_path, source=source, force=True)
    assert (tmp_path / "recipes/cluster-3.yaml").exists()


def test_a_record_removes_nothing_elsewhere(tmp_path: Path):
    (tmp_path / "other.yaml").write_text("x: 1\n")
    run = tmp_path / "run"
    write_run_folder(demo_spec(), run)
    digest = digest_bytes(b"x: 1\n")
    names = ["../other.yaml", "recipes/../../other.yaml", str(tmp_path / "other.yaml")]
    (run / RECORD).write_text(json.dumps(dict.fromkeys(names, digest)))
    write_run_folder(demo_spec(), run)
    assert (tmp_path / "other.yaml").exists()


def test_a_folder_under_another_name_is_not_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A YAML that changes is trained again; how the user names the folder is no change."""
    write_run_folder(demo_spec(), tmp_path / "my run")
    before = contents(tmp_path / "my run")
    monkeypatch.chdir(tmp_path / "my run")
    write_run_folder(read_spec(Path("untax.yaml")), Path(), source=Path("untax.yaml"))
    assert contents(tmp_path / "my run") == before


def test_what_was_trained_is_not_rewritten_for_a_comment(tmp_path: Path):
    """Another version's comments are no reason to train again, and the user's own are not lost."""
    write_run_folder(demo_spec(), tmp_path)
    names = ("cluster-0", "cluster-1", "sft")
    files = [tmp_path / f"recipes/{name}.yaml" for name in names]
    record = json.loads((tmp_path / RECORD).read_text())
    for file in files[:2]:  # as another version would have written them
        file.write_text("# another comment\n" + file.read_text())
        record[f"recipes/{file.name}"] = digest_bytes(file.read_bytes())
    (tmp_path / RECORD).write_text(json.dumps(record))
    files[2].write_text("# mine\n" + files[2].read_text())
    for name in ("disperse", "cluster-0", "sft"):
        (tmp_path / f"outputs/{name}").mkdir(parents=True)
    for _ in range(2):
        assert write_run_folder(demo_spec(), tmp_path).kept == ()
    first, second, third = (file.read_text() for file in files)
    assert first.startswith("# another comment")
    assert not second.startswith("# another comment")  # nothing was made by it
    assert third.startswith("# mine")
    source = edit_spec(tmp_path, demo_spec().model_copy(update={"seed": 7}))
    assert write_run_folder(read_spec(source), tmp_path, source=source).kept == ("recipes/sft.yaml",)
    assert "seed: 7" in files[0].read_text()


def test_named_recipes_have_no_record(tmp_path: Path):
    write_run_folder(demo_spec(), tmp_path, layout=Layout("x"))
    assert not (tmp_path / ".untax").exists()


def test_a_file_that_is_no_text_counts_as_edited(tmp_path: Path):
    write_run_folder(demo_spec(), tmp_path)
    (tmp_path / "recipes/sft.yaml").write_bytes(b"\xff\xfe")
    assert write_run_folder(demo_spec(), tmp_path).kept == ("recipes/sft.yaml",)
    write_run_folder(demo_spec(), tmp_path, force=True)


def test_another_run_in_the_folder_is_refused(tmp_path: Path):
    write_run_folder(demo_spec(), tmp_path)
    other = demo_spec().model_copy(update={"seed": 43})
    before = contents(tmp_path)
    with pytest.raises(UntaxError, match="another run"):
        write_run_folder(other, tmp_path)
    assert contents(tmp_path) == before


def test_an_output_path_that_is_a_file(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for out in ("file", "file/run"):
        with pytest.raises(UntaxError, match="The output path is a file"):
            write_run_folder(demo_spec(), tmp_path / out)


def test_local_paths_are_relative_to_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    assert seen_from_run("data.jsonl", Path("deep/run"), where="x") == "../../data.jsonl"
    assert seen_from_run("org/name", Path("run"), where="x") == "org/name"
    for missing in ("missing.jsonl", "./missing", "a/b/c", "/nowhere"):
        with pytest.raises(UntaxError, match="no such file"):
            seen_from_run(missing, Path("run"), where="--dataset")


def test_links_stay_as_they_were_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A link gives a folder a name that mergekit can read."""
    (tmp_path / "a+b").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "a+b")
    monkeypatch.chdir(tmp_path)
    for typed in ("model", str(tmp_path / "model")):
        assert seen_from_run(typed, Path("run"), where="--base") == "../model"
    assert seen_from_run("a+b", Path("run"), where="--base") == "../a+b"


def test_paths_lead_out_of_a_linked_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far/away")
    (tmp_path / "data.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    for out in ("link/run", "link"):
        found = seen_from_run("data.jsonl", Path(out), where="--dataset")
        Path(out).mkdir(exist_ok=True)
        assert (Path(out) / found).samefile("data.jsonl")
    found = seen_from_run("link/../../data.jsonl", Path("new/run"), where="--dataset")
    Path("new/run").mkdir(parents=True)
    assert (Path("new/run") / found).samefile("data.jsonl")


def test_an_empty_path_is_refused():
    with pytest.raises(UntaxError, match="empty"):
        seen_from_run("", Path("run"), where="--base")


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


def test_the_embedder_of_a_spec_that_moves(tmp_path: Path):
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "model").mkdir(parents=True)
    spec = demo_spec()
    for embedder, expected in (("llm:model", "llm:../old/model"), ("llm:org/name", "llm:org/name"), ("tfidf", "tfidf")):
        dtm = spec.arms["dtm"].model_copy(update={"strategy": "kmeans", "embedder": embedder})
        moved = rebased(spec.model_copy(update={"arms": {**spec.arms, "dtm": dtm}}), old, new).arms["dtm"]
        assert isinstance(moved, Dtm)
        assert moved.embedder == expected
