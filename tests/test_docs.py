"""The guides: generated pages are fresh, links lead somewhere, commands parse, keys and snippets are real."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import yaml

from untax.cli.main import cli
from untax.disperse.args import DisperseArgs
from untax.disperse.settings import read_settings as disperse_settings
from untax.penalty.args import DeltaPenaltyArgs
from untax.penalty.reach import check_training
from untax.penalty.settings import read_settings as penalty_settings
from untax.plugins import hook_names
from untax.training.keys import check_plugins

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("README.md", "docs/*.md", "recipes/*/README.md")
    for path in REPOSITORY.glob(pattern)
)


def read(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build", REPOSITORY / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Generated pages


@pytest.mark.parametrize("page", ["cli.md", "hooks.md"])
def test_generated_pages_are_fresh(build: ModuleType, page: str) -> None:
    assert read(f"docs/{page}") == build.pages()[page], "run `make docs`"


def test_every_hook_is_documented_with_its_exact_signature(build: ModuleType) -> None:
    page = read("docs/hooks.md")
    declared = (REPOSITORY / "plugin" / "untax" / "hookspecs.py").read_text(encoding="utf-8")
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == hook_names()
    for hook in hook_names():
        signature = build.signature(hook)
        assert f"\n```python\n{signature}\n```\n" in page
        assert f"def {signature}:" in declared


def test_every_command_is_documented(build: ModuleType) -> None:
    documented = re.findall(r"^## (untax.*)$", read("docs/cli.md"), re.MULTILINE)
    assert documented == [context.command_path for context in build.contexts()]
    assert {"untax", "untax recipe dtm", "untax recipe paft", "untax run"} <= set(documented)


def test_the_hook_example_works() -> None:
    """What a reader pastes into a package of their own."""
    (example,) = [code for code in fenced(read("docs/hooks.md"), "python") if "hookimpl" in code]
    module: dict[str, Any] = {}
    exec(example, module)
    strategy = module["disperse_strategies"]()["by_length"]

    class Rows(list[str]):
        digests = (b"d", b"c", b"b", b"a")

    assert strategy(Rows(["xxxx", "x", "xxx", "xx"]), clusters=2, seed=1) == [1, 0, 1, 0]


# Links


def links(text: str) -> Iterator[str]:
    yield from re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in links(read(page)):
        target, _, anchor = link.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        path = (REPOSITORY / page).parent / target if target else REPOSITORY / page
        assert path.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), f"{page} links to {link}"


# Commands


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def typed_commands(text: str) -> Iterator[str]:
    """Every ``untax ...`` line of a code block, without prompt, comment and line breaks."""
    in_fence = False
    for line in re.sub(r" *\\\n\s*", " ", text).splitlines():
        in_fence ^= line.startswith("```")
        found = re.match(r"(?:\$ )?(?:cd \S+ && )?(untax .+)", line.strip())
        if found and (in_fence or line.startswith("    ")):
            yield re.split(r"\s{2,}|\s#", found[1])[0]


def mentioned_commands(text: str) -> Iterator[str]:
    """Every ``untax ...`` in backticks, which need not be complete."""
    yield from re.findall(r"`(untax [^`\n]+)`", text)


def check_command(line: str, *, complete: bool) -> None:
    """Check that a command line's command and options exist and, if it is ``complete``, that it parses.

    Lines with placeholders (``...``, words in upper case) are never complete.

    Raises:
        AssertionError: they do not, or it does not.
    """
    words = shlex.split(line)[1:]
    complete = complete and not any(word == "..." or re.fullmatch(r"[A-Z][A-Z_]*", word) for word in words)
    command: click.Command = cli
    while isinstance(command, click.Group) and words[:1] != ["--from"]:
        place = next((index for index, word in enumerate(words) if not word.startswith("-")), None)
        if place is None or words[place].isupper():
            break
        _check_options(command, words[:place], line)
        context = click.Context(command)
        assert words[place] in command.list_commands(context), f"there is no command '{words[place]}': {line}"
        command, words = command.get_command(context, words[place]), words[place + 1 :]
    _check_options(command, words, line)
    if complete:
        _parse(command, words, line)


def _parse(command: click.Command, words: list[str], line: str) -> None:
    try:
        command.make_context("untax", list(words))
    except click.exceptions.Exit:
        pass  # --help
    except click.ClickException as error:
        raise AssertionError(f"{error.format_message()}: {line}") from error


def _check_options(command: click.Command, words: list[str], line: str) -> None:
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"-h", "--help"}
    for word in words:
        option = word.partition("=")[0]
        if re.fullmatch(r"--?[a-z][\w-]*", option) and not command.context_settings.get("ignore_unknown_options"):
            assert option in known, f"there is no option {option}: {line}"


TYPED = sorted({(page, line) for page in PAGES for line in typed_commands(read(page))})
MENTIONED = sorted({(page, line) for page in PAGES for line in mentioned_commands(read(page))})


@pytest.mark.parametrize(("page", "line"), TYPED)
def test_typed_commands_parse(page: str, line: str) -> None:
    check_command(line, complete=True)


@pytest.mark.parametrize(("page", "line"), MENTIONED)
def test_mentioned_commands_exist(page: str, line: str) -> None:
    check_command(line, complete=False)


def test_commands_are_found() -> None:
    text = """Say `untax run x/` or:

    cd run && untax disperse a.yaml      # comment
    untax recipe dtm --base B \\
        --dataset d -o run/

```bash
$ untax plugins
```
untax is a word here.
"""
    typed = ["untax disperse a.yaml", "untax recipe dtm --base B --dataset d -o run/", "untax plugins"]
    assert list(typed_commands(text)) == typed
    assert list(mentioned_commands(text)) == ["untax run x/"]


@pytest.mark.parametrize(
    "line",
    [
        "untax --debug run run/",
        "untax COMMAND",
        "untax recipe --from a.yaml -o run",
        "untax run FOLDER --jobs N",
        "untax merge a.yaml out --cuda",
        "untax eval --help",
    ],
)
def test_right_commands_pass(line: str) -> None:
    check_command(line, complete=True)


@pytest.mark.parametrize(
    "line",
    [
        "untax rn x",
        "untax run",
        "untax --debg run x",
        "untax run x --job 2",
        "untax run --jobs many x",
        "untax recipe dtm --base b",
        "untax recipe dmt ... --device cpu",
        "untax recipe dtm ... --devise cpu",
    ],
)
def test_wrong_commands_are_refused(line: str) -> None:
    with pytest.raises(AssertionError):
        check_command(line, complete=True)


# Keys


def keys_of(*models: Any) -> set[str]:
    return {key for model in models for key in model.model_fields}


def test_every_key_has_its_row() -> None:
    rows = re.findall(r"^\| `((?:disperse|delta)_\w+)` \|", read("docs/axolotl-keys.md"), re.MULTILINE)
    assert set(rows) == keys_of(DisperseArgs, DeltaPenaltyArgs)
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize("page", PAGES)
def test_no_page_names_a_key_that_is_none(page: str) -> None:
    named = set(re.findall(r"\b((?:disperse|delta)_[a-z]\w*)\b", read(page)))
    assert named <= keys_of(DisperseArgs, DeltaPenaltyArgs) | set(hook_names())


@pytest.mark.parametrize("snippet", fenced(read("docs/axolotl-keys.md"), "yaml"))
def test_the_example_configurations_are_accepted(snippet: str) -> None:
    cfg = yaml.safe_load(snippet)
    check_plugins(cfg, where="the snippet")
    disperse_settings(cfg, where="the snippet")
    if penalty_settings(cfg, where="the snippet").active:
        check_training(cfg, where="the snippet")
    assert isinstance(cfg["learning_rate"], float)
