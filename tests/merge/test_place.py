"""Adapters that changed, folders in the way, and ends in the middle of a merge."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from untax.errors import UntaxError
from untax.manifest import changed_outputs, digest_model, read_manifest
from untax.merge import place

from .tiny_models import Config, linear, make_adapter, untax_merge, weights


def test_adapter_trained_anew_at_the_same_path_is_merged_anew(own_models: Path, config: Config, tmp_path: Path) -> None:
    options = [f"--lora-merge-cache={tmp_path / 'cache'}"]  # accepted, and of no effect
    path = config(**linear(own_models))
    untax_merge(path, tmp_path / "old", *options)
    make_adapter(own_models / "base", own_models / "a0", seed=11)
    untax_merge(path, tmp_path / "new", *options)
    untax_merge(path, tmp_path / "again")
    assert (tmp_path / "new/model.safetensors").read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()
    assert (tmp_path / "new/model.safetensors").read_bytes() != (tmp_path / "old/model.safetensors").read_bytes()
    assert not (tmp_path / "cache").exists()


def test_manifest_says_what_was_merged(models: Path, config: Config, tmp_path: Path) -> None:
    path = config(**linear(models))
    untax_merge(path, tmp_path / "out", "--random-seed=5")
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest["what"] == "model"
    paths = {str(models / name) for name in ("base", "a0", "a1")}
    assert set(manifest["inputs"]) == {*paths, f"tokenizer of {models / 'base'}"}
    assert manifest["inputs"][str(models / "base")] == digest_model(models / "base")
    assert manifest["seed"] == 5
    assert manifest["options"] == ["random_seed=5"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "mergekit_config.yml"} <= set(manifest["outputs"])
    assert {file.name for file in (tmp_path / "out").iterdir()} == {*manifest["outputs"], "README.md", "untax.json"}
    assert all(file.stat().st_mode & 0o777 == 0o666 & ~_umask() for file in (tmp_path / "out").iterdir())


def test_the_same_merge_again_does_nothing(models: Path, config: Config, tmp_path: Path) -> None:
    path, out = config(**linear(models)), tmp_path / "out"
    untax_merge(path, out)
    before = out.stat().st_ino, (out / "untax.json").read_bytes()
    (out / "README.md").write_text("my own card")
    assert untax_merge(path, out, "-v") == [f"{out} holds this merge already: nothing to do."]
    assert (out.stat().st_ino, (out / "untax.json").read_bytes()) == before


@pytest.mark.parametrize("change", ["config", "option", "adapter", "output", "foreign"])
def test_anything_else_in_the_way_is_refused_without_force(
    change: str, own_models: Path, config: Config, tmp_path: Path
) -> None:
    path, out, options = config(**linear(own_models)), tmp_path / "out", []
    untax_merge(path, out)
    if change == "config":
        path.write_text(path.read_text().replace("0.5", "0.4"))
    elif change == "option":
        options = ["--random-seed=3"]
    elif change == "adapter":
        make_adapter(own_models / "base", own_models / "a0", seed=11)
    elif change == "output":
        (out / "model.safetensors").write_bytes(b"changed")
    else:
        (out / "untax.json").unlink()
    kept = {file: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(UntaxError, match="holds something else"):
        untax_merge(path, out, *options)
    assert {file: file.read_bytes() for file in out.iterdir()} == kept
    untax_merge(path, out, *options, force=True)
    manifest = read_manifest(out)
    assert manifest is not None
    assert changed_outputs(out, manifest) == []
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_force_keeps_the_old_output_when_the_tokenizer_cannot_be_copied(
    own_models: Path, config: Config, tmp_path: Path
) -> None:
    path, out = config(**linear(own_models), chat_template="auto"), tmp_path / "out"
    untax_merge(path, out)
    kept = {file: file.read_bytes() for file in out.iterdir()}
    (own_models / "base/tokenizer.json").write_text("{}")  # mergekit would log this and go on
    with pytest.raises(UntaxError, match="mergekit failed"):
        untax_merge(path, out, force=True)
    assert {file: file.read_bytes() for file in out.iterdir()} == kept


def test_too_little_disk(tmp_path: Path) -> None:
    place.check_room(tmp_path / "out", 1000)
    with pytest.raises(UntaxError, match=r"needs about 1000000000\.0 GB of disk"):
        place.check_room(tmp_path / "deep" / "out", 10**18)


def test_room_is_estimated_before_anything_is_imported(
    models: Path, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    size = (models / "base/model.safetensors").stat().st_size
    for free, enough in ((0.8 * size, False), (1.2 * size, True)):  # the output, and no copies
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: shutil._ntuple_diskusage(0, 0, int(free)))
        if enough:
            untax_merge(config(**linear(models)), tmp_path / "out")
        else:
            with pytest.raises(UntaxError, match="of disk, and"):
                untax_merge(config(**linear(models)), tmp_path / "out")


def test_disk_that_fills_up_is_called_so(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    from untax.merge.mergekit_yaml import plain_errors

    def fill() -> None:
        with place.output_folder(tmp_path / "out", replace=False) as part, plain_errors("merge.yaml"):
            (part / "model.safetensors").write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(UntaxError, match="Cannot read or write: No space left on device"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_remains_of_a_killed_merge_are_removed_and_those_of_a_running_one_are_not(tmp_path: Path) -> None:
    remains = [tmp_path / ".out.dead.part", tmp_path / ".other.dead.part"]
    for folder in remains:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    with place.output_folder(tmp_path / "out", replace=False) as running:
        assert [folder.exists() for folder in remains] == [False, True]
        with place.output_folder(tmp_path / "out", replace=True) as second:
            assert running.exists()
            assert second != running
            (second / "model").touch()
        (tmp_path / "out/model").unlink()
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "out", remains[1]])


@pytest.mark.parametrize("kind", ["training", "model", "folder", "extra"])
def test_force_replaces_merges_only(kind: str, own_models: Path, config: Config, tmp_path: Path) -> None:
    """Nothing that cannot be made again is removed."""
    out, path = tmp_path / "out", config(**linear(own_models))
    if kind == "training":
        make_adapter(own_models / "base", out, seed=8)
        (out / "untax.json").write_text('{"what": "adapter", "outputs": {"adapter_model.safetensors": "0"}}')
    elif kind == "model":
        shutil.copytree(own_models / "base", out)
    elif kind == "folder":
        (out / "thesis").mkdir(parents=True)
    else:
        untax_merge(path, out)
        (out / "notes.txt").write_text("mine")
    before = sorted(file.name for file in out.rglob("*"))
    for dry_run in (True, False):
        with pytest.raises(UntaxError, match="--force replaces merges, and no merge made"):
            untax_merge(path, out, "--random-seed=9", force=True, dry_run=dry_run)
    assert sorted(file.name for file in out.rglob("*")) == before


def test_what_a_killed_merge_was_about_to_replace_comes_back(models: Path, config: Config, tmp_path: Path) -> None:
    out, path = tmp_path / "out", config(**linear(models))
    untax_merge(path, out)
    out.rename(tmp_path / ".out.old.part")
    (tmp_path / "..out.new.part.x.part").mkdir()
    assert untax_merge(path, out) == [f"{out} holds this merge already: nothing to do."]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["merge.yaml", "out"]


def test_names_with_wildcards(models: Path, config: Config, tmp_path: Path) -> None:
    (tmp_path / ".ob.x.part").mkdir()
    untax_merge(config(**linear(models)), tmp_path / "o[ab]")
    assert (tmp_path / ".ob.x.part").exists()


_MERGEKIT = "from untax.merge import mergekit_yaml as patched; name = 'run'; seconds = 60"
_STREAM = "from untax.merge.tensor_job import TensorJob as patched; name = 'merged'; seconds = 1"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(("engine", "patch"), [("mergekit", _MERGEKIT), ("stream", _STREAM)])
def test_stopped_in_the_middle(
    engine: str, patch: str, sent: signal.Signals, models: Path, config: Config, tmp_path: Path
) -> None:
    """Ctrl-C cleans up; after a kill the next merge does."""
    path, out = config(**linear(models)), tmp_path / "folder" / "out"
    program = f"import sys, time; from untax.cli.main import main; {patch}\n"
    program += "setattr(patched, name, lambda *a, **k: (print('merging', flush=True), time.sleep(seconds)))\nmain()"
    command = [sys.executable, "-c", program, "merge", str(path), str(out), f"--engine={engine}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    assert process.stdout is not None
    assert process.stdout.readline() == "merging\n"
    process.send_signal(sent)
    process.communicate(timeout=30)
    codes = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
    assert process.returncode == codes[sent]
    assert not out.exists()
    assert len(list(out.parent.iterdir())) == (1 if sent == signal.SIGKILL else 0)
    untax_merge(path, out)
    assert list(out.parent.iterdir()) == [out]
    assert weights(out)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
