"""Remembered digests: used for the same file only, and never in the way."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from untax import digest_records
from untax import manifest as manifest_module
from untax.digest_records import LARGE, record_digest, recorded_digest
from untax.manifest import digest_file, digest_model, model_digest_is_known


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digest_records, "SETTLED_NS", -1)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"x" * LARGE)
    return path


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_digest_is_remembered_by_other_processes_too(large: Path) -> None:
    assert recorded_digest(large) is None
    assert digest_file(large) == sha(large)
    assert recorded_digest(large) == sha(large)


def test_a_changed_file_has_no_record(large: Path) -> None:
    digest_file(large)
    status = large.stat()
    with large.open("r+b") as handle:
        handle.write(b"y")
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))  # size and time of change as before
    assert recorded_digest(large) is None
    assert digest_file(large) == sha(large)


def test_a_file_that_changed_while_it_was_read_is_not_recorded(large: Path) -> None:
    before = large.stat()
    large.write_bytes(b"y" * LARGE)
    record_digest(large, "0" * 64, before)
    assert recorded_digest(large) is None


def test_small_and_young_files_have_no_record(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = large.with_name("small")
    small.write_bytes(b"x")
    digest_file(small)
    assert recorded_digest(small) is None
    monkeypatch.setattr(digest_records, "SETTLED_NS", 10**18)
    digest_file(large)
    assert recorded_digest(large) is None


def test_a_damaged_record_does_not_count(large: Path, tmp_path: Path) -> None:
    record_digest(large, sha(large), large.stat())
    (record,) = (tmp_path / "cache/untax/digests").iterdir()
    record.write_text("half")
    assert recorded_digest(large) is None


def test_a_cache_that_cannot_be_written_is_no_error(large: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert digest_file(large) == sha(large)
    assert recorded_digest(large) is None


def test_whether_a_model_must_be_read(large: Path) -> None:
    (large.parent / "config.json").write_text("{}")
    assert not model_digest_is_known(large.parent)
    digest_model(large.parent)
    assert model_digest_is_known(large.parent)
    assert model_digest_is_known("some/hub-id")


@pytest.mark.parametrize("size", [1, 3 * 1024, 200 * 1024, 3 * 1024 * 1024])
def test_a_change_without_a_trace_in_the_times_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """As when the clock is set back, and a file is written again at the very time of its last change."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    status = path.stat()
    monkeypatch.setattr(digest_records, "SETTLED_NS", -1)
    monkeypatch.setattr(digest_records, "LARGE", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Path, "stat", lambda self, **options: status if self == path else os.stat(self, **options))
    monkeypatch.setattr(os, "fstat", lambda handle: status)
    before = digest_file(path)
    assert recorded_digest(path) == before
    path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))
    assert recorded_digest(path) is None
    assert digest_file(path) == sha(path) != before


@pytest.mark.parametrize("seconds", [-(10**9), -3600, 3600, 10**9])
def test_file_times_of_any_age_hide_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    monkeypatch.setattr(digest_records, "SETTLED_NS", -1)
    path = tmp_path / "file"
    path.write_bytes(b"one")
    when = path.stat().st_mtime_ns + seconds * 10**9
    for content in (b"two", b"six"):
        path.write_bytes(content)
        os.utime(path, ns=(when, when))
        assert digest_file(path) == sha(path)


def test_a_file_from_the_future_is_read_each_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    future = path.stat().st_mtime_ns + 10**15
    os.utime(path, ns=(future, future))
    assert not digest_records.is_settled(path.stat())


def test_a_large_file_is_read_once(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = hashlib.file_digest

    def counted(handle: Any, name: str) -> Any:
        read.append(handle.name)
        return whole(handle, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    for _ in range(3):
        digest_file(large)
    manifest_module._digest_file.cache_clear()  # as in another process
    digest_file(large)
    assert read == [str(large)]
