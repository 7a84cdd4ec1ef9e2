"""Remembered digests: used for the same file only, and never in the way."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from untax import digest_records
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
