"""``untax`` as a whole: instant help, plain errors, exit codes, and plugins of other packages."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from untax.cli.main import COMMANDS, cli, main
from untax.errors import UntaxError
from untax.plugins import hook_names

HEAVY = ("torch", "axolotl", "mergekit", "lm_eval", "transformers", "datasets", "peft", "trl", "matplotlib", "pyarrow")

CALL = "import sys; from untax.cli.main import main; sys.argv[0] = 'untax'; main()"


def untax(*arguments: str, path: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``untax`` in a process of its own; ``path`` is put on PYTHONPATH."""
    return python(CALL, *arguments, path=path, **environment)


def python(
    code: str, *arguments: str, path: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name != "UNTAX_DEBUG"}
    variables |= {"PYTHONPATH": str(path)} if path else {}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**variables, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


# Help


def test_help_imports_nothing_heavy() -> None:
    """What makes ``--help`` instant: no page of it needs torch or a tool that brings torch."""
    code = f"""
import sys
from click.testing import CliRunner
from untax.cli.main import COMMANDS, cli
for arguments in [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]:
    result = CliRunner().invoke(cli, arguments)
    print(arguments, result.exit_code, [name for name in {HEAVY!r} if name in sys.modules])
"""
    lines = python(code).stdout.splitlines()
    assert len(lines) == 2 + len(COMMANDS)
    assert [line for line in lines if not line.endswith("] 0 []")] == []


def test_help_of_the_installed_command_is_quick() -> None:
    """CPU time, not wall time, of the quickest of a few calls: a busy machine does not matter."""
    code = """
import resource, subprocess, sys
def seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
times = []
for _ in range(5):
    before = seconds()
    subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
    times.append(seconds() - before)
print(min(times))
"""
    found = python(code, str(Path(sys.executable).parent / "untax"), "--help")
    assert float(found.stdout) < 0.5, found.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_answers_help(command: str) -> None:
    for flag in ("--help", "-h"):
        result = CliRunner().invoke(cli, [command, flag])
        assert result.exit_code == 0, result.output
        assert f"Usage: cli {command}" in result.output


def test_help_lists_every_command_with_its_line() -> None:
    shown = " ".join(CliRunner().invoke(cli, ["--help"]).output.split())
    for name, line in COMMANDS.items():
        assert f"{name} {line}" in shown


def test_every_command_file_is_listed_and_nothing_else() -> None:
    folder = Path(str(sys.modules["untax.cli.main"].__file__)).parent
    modules = {path.stem for path in folder.glob("*.py") if "command" in _names(path)}
    assert modules == set(COMMANDS)


def _names(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


# Errors and exit codes


def test_unknown_command_has_a_near_name() -> None:
    found = untax("mrge", "x.yaml", "out")
    assert found.returncode == 2
    assert "There is no command 'mrge'. Did you mean 'merge'?" in found.stderr
    assert "Traceback" not in found.stderr


def test_no_arguments_show_the_help() -> None:
    found = untax()
    assert found.returncode == 2
    assert "Commands:" in found.stdout + found.stderr


@pytest.mark.parametrize(
    "arguments", [["--no-such"], ["run"], ["eval", "--limit", "many", "model"], ["recipe", "dtm", "--base", "b"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    found = untax(*arguments)
    assert found.returncode == 2
    assert "Usage:" in found.stderr
    assert "Traceback" not in found.stderr


def test_an_error_says_what_where_and_how_to_mend_it(tmp_path: Path) -> None:
    found = untax("run", str(tmp_path))
    assert found.returncode == 2
    assert found.stderr.startswith("untax: error: ")
    assert "where: " in found.stderr
    assert "fix: " in found.stderr
    assert "Traceback" not in found.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    for found in (untax("--debug", "run", str(tmp_path)), untax("run", str(tmp_path), UNTAX_DEBUG="1")):
        assert found.returncode == 2
        assert "Traceback" in found.stderr
        assert "UntaxError" in found.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UntaxError("no"), 2),
        (click.UsageError("no"), 2),
        (click.Abort(), 130),
        (KeyboardInterrupt(), 130),
        (click.exceptions.Exit(3), 3),
        (SystemExit(4), 4),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from untax.cli import plugins

    def fail() -> None:
        raise error

    monkeypatch.setattr(plugins.command, "callback", fail)
    monkeypatch.setattr(sys, "argv", ["untax", "plugins"])
    monkeypatch.setenv("UNTAX_DEBUG", "")  # unset again afterwards, whatever main sets
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    assert "Traceback" not in capsys.readouterr().err


def test_an_unforeseen_error_is_said_to_be_a_bug_and_debug_shows_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from untax.cli import plugins

    def fail() -> None:
        raise ZeroDivisionError("by hand")

    monkeypatch.setattr(plugins.command, "callback", fail)
    monkeypatch.setenv("UNTAX_DEBUG", "")  # unset again afterwards, whatever main sets
    for arguments, traceback_shown in ((["plugins"], False), (["--debug", "plugins"], True)):
        monkeypatch.setattr(sys, "argv", ["untax", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        said = capsys.readouterr().err
        assert "unexpected ZeroDivisionError: by hand" in said
        assert ("Traceback" in said) == traceback_shown


# Plugins of other packages


def install(site: Path, name: str, code: str) -> Path:
    """A distribution as pip leaves it: a module and a .dist-info with an entry point of group ``untax``."""
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"{name}.py").write_text(code, encoding="utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[untax]\n{name} = {name}\n", encoding="utf-8")
    return site


HALVES = """
import untax

def halves(corpus, *, clusters, seed):
    return [row * clusters // len(corpus) for row in range(len(corpus))]

@untax.hookimpl
def disperse_strategies():
    return {"halves": halves}
"""

READ = """
import json, sys
from untax.disperse.settings import read_settings
from untax.plugins import named
keys = {"disperse_clusters": 2, "disperse_cluster": 0, "disperse_strategy": sys.argv[1]}
settings = read_settings(keys, where="x.yaml")
strategy = named("disperse_strategies", settings.strategy, where="x.yaml")
print(json.dumps(strategy(range(6), clusters=2, seed=0)))
"""


def test_plugins_lists_every_hook_with_its_implementers() -> None:
    found = untax("plugins")
    assert found.returncode == 0, found.stderr
    for hook in hook_names():
        assert f"{hook}  Return {{" in found.stdout
    for line in (
        "    disperse (untax.disperse.hooks): column, kmeans, random",
        "    penalty (untax.penalty.hooks): delta_ewc, delta_l1, delta_l2",
        "    evaluate (untax.evaluate.hooks): demo",
    ):
        assert line in found.stdout


def test_a_strategy_of_another_package(tmp_path: Path) -> None:
    site = install(tmp_path, "halving", HALVES)
    assert "    halving (halving): halves\n" in untax("plugins", path=site).stdout
    used = python(READ, "halves", path=site)
    assert json.loads(used.stdout) == [0, 0, 0, 1, 1, 1]
    assert "Did you mean 'halves'? Known: column, halves, kmeans, random." in python(READ, "halfs", path=site).stderr
    assert "halves" not in untax("plugins").stdout


def test_two_plugins_with_one_name(tmp_path: Path) -> None:
    install(tmp_path, "halving", HALVES)
    site = install(tmp_path, "halving_too", HALVES)
    refused = python(READ, "halves", path=site)
    assert refused.returncode != 0
    assert "Two plugins register 'halves' through disperse_strategies." in refused.stderr
    shown = untax("plugins", path=site).stdout
    assert "halving (halving): halves" in shown
    assert "halving_too (halving_too): halves" in shown


def test_a_built_in_name_cannot_be_taken(tmp_path: Path) -> None:
    site = install(tmp_path, "taker", HALVES.replace('"halves"', '"random"'))
    assert "Two plugins register 'random'" in python(READ, "random", path=site).stderr


def test_a_misspelled_hook(tmp_path: Path) -> None:
    site = install(tmp_path, "misspelled", HALVES.replace("disperse_strategies", "disperse_stategies"))
    found = untax("plugins", path=site)
    assert found.returncode == 2
    assert "disperse_stategies" in found.stderr
    assert "where: misspelled" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_hook_with_an_unknown_argument(tmp_path: Path) -> None:
    site = install(tmp_path, "curious", HALVES.replace("def disperse_strategies()", "def disperse_strategies(model)"))
    found = untax("plugins", path=site)
    assert found.returncode == 2
    assert "model" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_plugin_that_cannot_be_imported(tmp_path: Path) -> None:
    site = install(tmp_path, "broken", "import a_package_that_is_not_there\n")
    found = untax("plugins", path=site)
    assert found.returncode == 2
    assert "a_package_that_is_not_there" in found.stderr
    assert "Traceback" not in found.stderr


def test_errors_have_the_same_form_everywhere() -> None:
    assert str(UntaxError("It broke.", where="a.yaml", fix="Mend it.")) == (
        "It broke.\n  where: a.yaml\n  fix:   Mend it."
    )
