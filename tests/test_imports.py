"""Who may import whom: every import of the package, also those inside functions, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "plugin" / "untax"

# From the ground upwards: a part may import those of lower floors; of its own floor only itself. The ground floor's
# parts may import each other.
FLOORS = (
    {"errors", "files", "digest_records", "manifest", "plugins", "hookspecs", "data", "adapters", "training"},
    {"disperse", "penalty", "merge", "recipes", "evaluate", "fisher", "replay"},
    {"report"},
    {"run", "demo"},
    {"check"},
    {"cli"},
)
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}

# Axolotl finds its plugins by importing these, so they may import Axolotl at the top; nothing else may import them.
PLUGIN_FILES = {"disperse/plugin.py", "penalty/plugin.py", "training/plugin.py"}

HEAVY = {
    *("torch", "axolotl", "mergekit", "lm_eval", "transformers", "datasets", "peft", "trl", "matplotlib", "pyarrow"),
    *("sklearn", "sentence_transformers", "ray"),
}
# Where a tool may be imported at all: everything else works without it.
HOMES = {
    "axolotl": (*PLUGIN_FILES, "data/", "check/axolotl_rows.py", "check/axolotl_schema.py"),
    "mergekit": ("merge/",),
    "lm_eval": ("evaluate/",),
    "matplotlib": ("report/",),
    "sklearn": ("disperse/",),
    "sentence_transformers": ("disperse/",),
    "ray": ("run/",),
}


@dataclass(frozen=True)
class Import:
    """One imported module, as ``from a import b`` names it both ``a`` and ``a.b``."""

    line: int
    names: tuple[str, ...]
    at_top: bool


def imports(source: str) -> Iterator[Import]:
    """Every import of a source; ``at_top`` are those that run when the module is imported."""
    yield from _imports(ast.parse(source), at_top=True)


def _imports(node: ast.AST, *, at_top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield Import(child.lineno, tuple(alias.name for alias in child.names), at_top)
        elif isinstance(child, ast.ImportFrom):
            module = "." * child.level + (child.module or "")
            yield Import(child.lineno, (module, *(f"{module}.{alias.name}" for alias in child.names)), at_top)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(child, at_top=False)
        elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for part in child.body:
                yield from _imports(ast.Module([part], []), at_top=False)
            for part in child.orelse:
                yield from _imports(ast.Module([part], []), at_top=at_top)
        else:
            yield from _imports(child, at_top=at_top)


def violations(file: str, source: str) -> list[str]:
    """What the imports of ``file`` (its path below the package) break of the rules, one sentence each."""
    return [
        f"{file}:{found.line}: {problem}"
        for found in imports(source)
        for problem in [*_wrong_floor(file, found), *_wrong_package(file, found)]
    ]


def _wrong_floor(file: str, found: Import) -> Iterator[str]:
    own = _part(file)
    if found.names[0].startswith("."):
        yield "relative import: write the module's full name"
    for name in found.names:
        other = name.split(".")[1] if name.startswith("untax.") else None
        if other not in FLOOR or other == own:
            continue
        if own == "__init__":
            yield f"untax itself imports untax.{other}: it must stay light"
        elif FLOOR[other] > FLOOR[own] or (FLOOR[other] == FLOOR[own] > 0):
            yield f"{own} may not import untax.{other}"
            return
        elif name in _plugin_modules() and file not in PLUGIN_FILES:
            yield f"only Axolotl's plugin files may import {name}"
            return


def _wrong_package(file: str, found: Import) -> Iterator[str]:
    for package in {name.split(".")[0] for name in found.names} & HEAVY:
        if found.at_top and not (package == "axolotl" and file in PLUGIN_FILES):
            yield f"{package} is imported with the module: import it in the function that needs it"
        if package in HOMES and not file.startswith(HOMES[package]):
            yield f"{package} may be imported only in {', '.join(HOMES[package])}"


def _part(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def _plugin_modules() -> set[str]:
    return {"untax." + file.removesuffix(".py").replace("/", ".") for file in PLUGIN_FILES}


FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def test_every_part_has_a_floor() -> None:
    assert {_part(file) for file in FILES} - {"__init__"} <= set(FLOOR), "give a new part its floor in this file"
    assert set(FLOOR) - {_part(file) for file in FILES} == set()


@pytest.mark.parametrize("file", FILES)
def test_imports_only_downwards_and_nothing_heavy(file: str) -> None:
    assert violations(file, (PACKAGE / file).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("merge/merge.py", "from untax.errors import UntaxError\nfrom untax.merge import place", None),
        ("run/local.py", "from untax.report.arms import arm_rows\nimport untax.evaluate.score", None),
        ("data/corpus.py", "def read():\n    from axolotl.utils.dict import DictDefault", None),
        ("disperse/plugin.py", "from axolotl.utils.dict import DictDefault\nimport untax.training.plugin", None),
        ("adapters/live.py", "if TYPE_CHECKING:\n    import torch", None),
        ("errors.py", "import untax", None),
        ("merge/merge.py", "from untax.recipes.spec import RunSpec", "merge may not import untax.recipes"),
        ("merge/merge.py", "from untax import recipes", "merge may not import untax.recipes"),
        ("manifest.py", "def late():\n    import untax.evaluate", "manifest may not import untax.evaluate"),
        ("report/arms.py", "class A:\n    import untax.run.done", "report may not import untax.run"),
        ("demo/demo.py", "if TYPE_CHECKING:\n    import untax.run", "demo may not import untax.run"),
        ("run/done.py", "try:\n    import untax.cli\nexcept ImportError: ...", "run may not import untax.cli"),
        ("__init__.py", "from untax import plugins", "must stay light"),
        ("run/done.py", "from . import local", "relative import"),
        ("recipes/plan.py", "import untax.training.plugin", "only Axolotl's plugin files"),
        ("merge/merge.py", "import torch.nn as nn", "torch is imported with the module"),
        ("adapters/live.py", "if not TYPE_CHECKING:\n    import torch", "torch is imported with the module"),
        ("adapters/live.py", "if TYPE_CHECKING: ...\nelse:\n    import torch", "torch is imported with the module"),
        ("penalty/plugin.py", "import torch", "torch is imported with the module"),
        ("penalty/attach.py", "def f():\n    import axolotl", "axolotl may be imported only in"),
        ("recipes/plan.py", "async def f():\n    from mergekit import config", "mergekit may be imported only in"),
    ],
)
def test_the_rules_see_what_they_should(file: str, source: str, expected: str | None) -> None:
    found = violations(file, source)
    assert (found == []) if expected is None else (len(found) == 1 and expected in found[0])
