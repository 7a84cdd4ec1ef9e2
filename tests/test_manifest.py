"""untax.json: written last, in one step; digests that are never stale."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from untax import digest_records
from untax.errors import UntaxError
from untax.manifest import (
    changed_outputs,
    digest_file,
    digest_files,
    digest_json,
    digest_model,
    read_manifest,
    write_manifest,
)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(folder: Path, **sections: Any) -> dict[str, Any]:
    return write_manifest(folder, what="adapter", outputs=["b.bin", "a.bin"], started=time.time() - 1, **sections)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    (tmp_path / "a.bin").write_bytes(b"a")
    (tmp_path / "b.bin").write_bytes(b"b")
    return tmp_path


def test_write_and_read(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    written = write(artifact, seed=7, penalty={"l1": 0.1})
    assert read_manifest(artifact) == written
    assert written["outputs"] == {"a.bin": sha(b"a"), "b.bin": sha(b"b")}
    assert (written["what"], written["seed"], written["penalty"], written["threads"]) == (
        "adapter",
        7,
        {"l1": 0.1},
        "3",
    )
    assert written["wall_seconds"] >= 1
    assert written["versions"]["untax"]
    assert written["command"]
    assert changed_outputs(artifact, written) == []


def test_changed_outputs(artifact: Path) -> None:
    written = write(artifact)
    (artifact / "a.bin").unlink()
    (artifact / "b.bin").write_bytes(b"c")
    assert changed_outputs(artifact, written) == ["a.bin", "b.bin"]


def test_a_failed_write_keeps_the_old_manifest(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write(artifact, seed=1)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UntaxError, match="No space left"):
        write(artifact, seed=2)
    assert read_manifest(artifact) == before
    assert sorted(path.name for path in artifact.iterdir()) == ["a.bin", "b.bin", "untax.json"]


def test_no_manifest(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    assert read_manifest(tmp_path / "gone") is None
    (tmp_path / "file").touch()
    assert read_manifest(tmp_path / "file") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"null",
        b'{"outputs": {}}',
        b'{"what": "adapter"}',
        b'{"what": "adapter", "outputs": []}',
        b'{"what": "adapter", "outputs": {"a.bin": null}}',
        b'{"what": 1, "outputs": {}}',
    ],
)
def test_what_is_no_manifest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "untax.json").write_bytes(content)
    with pytest.raises(UntaxError, match="manifest") as error:
        read_manifest(tmp_path)
    assert "untax.json" in str(error.value.where)


def test_a_folder_in_the_place_of_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "untax.json").mkdir()
    with pytest.raises(UntaxError, match="cannot be read"):
        read_manifest(tmp_path)


def test_a_digest_is_never_stale(tmp_path: Path) -> None:
    """Same name, same size, same time stamp: only the content differs."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    os.utime(path, (1, 1))
    assert digest_file(path) == sha(b"one")
    path.write_bytes(b"two")
    os.utime(path, (1, 1))
    assert digest_file(path) == sha(b"two")
    other = tmp_path / "b.bin"
    other.write_bytes(b"333")
    os.utime(other, (1, 1))
    other.replace(path)
    assert digest_file(path) == sha(b"333")


def test_a_settled_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    content = (
        b"one" * digest_records.SAMPLES * digest_records.SAMPLE_BYTES
    )  # A small one is read: a sample is all of it.
    path.write_bytes(content)
    monkeypatch.setattr(digest_records, "SETTLED_NS", -1)
    read: list[str] = []
    true_digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda handle, kind: read.append(kind) or true_digest(handle, kind))
    assert {digest_file(path) for _ in range(5)} == {sha(content)}
    assert len(read) == 1


def test_digests_of_folders(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"a")
    (tmp_path / "config.json").write_text("{}")
    first = digest_model(tmp_path)
    assert first == digest_files(tmp_path, ["*.safetensors", "config.json"])
    (tmp_path / "README.md").write_text("x")
    assert digest_model(tmp_path) == first
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    assert digest_model(tmp_path) != first


def test_a_model_of_the_hub_that_is_not_cached() -> None:
    assert digest_model("nobody/nothing") == "hub:nobody/nothing@unknown"


def test_digest_json_is_canonical() -> None:
    assert digest_json({"b": 1, "a": [1, "é"]}) == digest_json(json.loads('{"a": [1, "\\u00e9"], "b": 1}'))
    assert digest_json([1]) != digest_json(["1"])


def test_a_path_that_is_not_there_is_not_asked_of_the_hub() -> None:
    with pytest.raises(UntaxError, match="no model folder"):
        digest_model("../../not-there")
    assert digest_model("nobody/not-there") == "hub:nobody/not-there@unknown"
