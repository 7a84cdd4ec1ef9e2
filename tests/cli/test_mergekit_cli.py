"""``untax mergekit``: what it says and writes, with a site-packages folder of its own."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest
from click.testing import CliRunner

from untax.cli.mergekit import command as group
from untax.errors import UntaxError
from untax.merge import hook_file


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The running environment's own is never touched."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folder))
    return folder


def said(*arguments: str) -> str:
    result = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_enable_status_disable_each_twice(site: Path) -> None:
    path = site / "untax_mergekit.pth"
    assert said("status").startswith(f"disabled: there is no {path}")
    assert said("disable") == f"Disabled already: there is no {path}\n"
    assert f"Wrote {path}" in said("enable")
    first = path.read_bytes()
    assert said("enable") == f"Enabled already: {path}\n"
    assert path.read_bytes() == first
    assert said("status") == f"enabled: {path}\nmergekit 0.1.5: supported\n"
    assert said("disable") == f"Removed {path}\n"
    assert said("disable") == f"Disabled already: there is no {path}\n"
    assert list(site.iterdir()) == []


def test_the_file_of_another_untax(site: Path, tmp_path: Path) -> None:
    other = tmp_path / "it's another" / "import_hook.py"
    path = site / "untax_mergekit.pth"
    path.write_text(hook_file._TEXT.format(mark=hook_file._MARK, path=str(other)))
    assert f"enabled from another untax: {path} runs {other}, which is not there any more" in said("status")
    other.parent.mkdir()
    other.touch()
    assert f"runs {other}\n" in said("status")
    assert f"It was enabled from another untax: {other}" in said("enable")
    assert said("status").startswith("enabled: ")
    path.write_text("import os\n")  # of whatever made
    assert "enabled from another untax" in said("status")
    assert said("disable") == f"Removed {path}\n"


def test_every_line_of_the_file_is_a_comment_or_runs(site: Path, tmp_path: Path) -> None:
    """What Python's site module makes of it: a quote in the path, and a file that is there or not."""
    source = tmp_path / "it's" / "import_hook.py"
    lines = hook_file._TEXT.format(mark=hook_file._MARK, path=str(source)).splitlines()
    assert [line[0] for line in lines[:-1]] == ["#", "#"]
    assert lines[-1].startswith("import ")
    exec(lines[-1])
    source.parent.mkdir()
    source.write_text("import os; os.environ['UNTAX_TEST_NAME'] = __name__")
    exec(lines[-1])
    assert os.environ.pop("UNTAX_TEST_NAME") == "untax at start"


@pytest.mark.parametrize(
    ("version", "message"),
    [("0.2.0", "this is mergekit 0.2.0, and untax knows 0.1.5"), (None, "mergekit is not installed")],
)
def test_other_versions(version: str | None, message: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def found(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", found)
    assert message in said("status")
    assert message in said("enable")


@pytest.mark.parametrize(("command", "function"), [("enable", "open"), ("disable", "unlink")])
def test_site_packages_that_cannot_be_written_to(
    command: str, function: str, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(site / "untax_mergekit.pth"))

    monkeypatch.setattr(os, function, refuse)
    with pytest.raises(UntaxError, match="site-packages cannot be written to"):
        CliRunner().invoke(group, [command], catch_exceptions=False)
    assert list(site.iterdir()) == []
