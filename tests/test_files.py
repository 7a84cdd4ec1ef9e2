"""Nothing is ever half-written."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from untax.errors import UntaxError
from untax.files import escapes, make_folder, new_file, new_folder, write_text


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fail_sync(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old")
    write_text(path, "new ☺")
    assert path.read_text(encoding="utf-8") == "new ☺"
    assert names(tmp_path) == ["deep", "deep/a.txt"]


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "x")
        with new_folder(tmp_path / "folder") as part:
            (part / "b").write_text("x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, FileNotFoundError])
def test_an_exception_in_the_middle_keeps_the_old(tmp_path: Path, kind: type[BaseException]) -> None:
    def break_off(where: Path) -> None:
        where.write_text("half")
        raise kind("stop")

    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(kind), new_file(tmp_path / "a.txt") as part:
        break_off(part)
    with pytest.raises(kind), new_folder(tmp_path / "folder") as part:
        break_off(part / "b")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("code", "said"),
    [(errno.ENOSPC, "Free some space"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only"), (errno.EIO, "disk fails")],
)
def test_a_full_or_broken_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str) -> None:
    write_text(tmp_path / "a.txt", "old")
    fail_sync(monkeypatch, code)
    with pytest.raises(UntaxError, match=said) as error:
        write_text(tmp_path / "a.txt", "new")
    assert str(tmp_path / "a.txt") in str(error.value)
    with pytest.raises(UntaxError, match=said), new_folder(tmp_path / "folder") as part:
        (part / "b").write_text("x")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """/dev/full refuses every byte, as a full disk does."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with pytest.raises(UntaxError, match="No space left"), new_file(tmp_path / "a.txt"):
        Path("/dev/full").write_text("x")
    assert names(tmp_path) == []


def test_safetensors_own_exception_for_a_full_disk(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    with pytest.raises(UntaxError, match="No space left"), new_file(tmp_path / "a.safetensors"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError), new_file(tmp_path / "a.safetensors"):
        raise SafetensorError("HeaderTooLarge")


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for act in (
        lambda: write_text(tmp_path / "file" / "a.txt", "x"),
        lambda: make_folder(tmp_path / "file"),
        lambda: new_folder(tmp_path / "file").__enter__(),
        lambda: new_folder(tmp_path / "file" / "folder").__enter__(),
    ):
        with pytest.raises(UntaxError) as error:
            act()
        assert error.value.fix
    assert names(tmp_path) == ["file"]


def test_a_folder_that_is_not_empty_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as part:
        (part / "a").write_text("x")
    with pytest.raises(UntaxError, match="not empty"), new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out", "out/a"]


def test_a_folder_that_fills_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(UntaxError, match="Another process filled"), new_folder(tmp_path / "out"):
        write_text(tmp_path / "out" / "b", "theirs")
    assert names(tmp_path) == ["out", "out/b"]


def test_escapes(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    assert escapes(Path("../x"), tmp_path)
    assert escapes(Path("/etc"), tmp_path)
    assert escapes(Path("link/etc"), tmp_path)
    assert not escapes(Path("a/../b"), tmp_path)
