"""``untax doctor``: what of this environment is ready, and how to mend what is not."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click

from untax.errors import UntaxError

_PACKAGES = ("axolotl", "mergekit", "peft", "trl", "transformers", "torch", "lm-eval", "datasets", "accelerate")
_HOOKS = ("disperse", "penalty", "evaluate")
_LITTLE_DISK = 5e9
_LITTLE_MEMORY = 4e9


class Finding(NamedTuple):
    """One line of the report: ``state`` is ok, warn or fail; ``fix`` says how to mend it."""

    state: str
    about: str
    found: str
    fix: str = ""


@click.command("doctor", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("recipes", nargs=-1, type=click.Path(path_type=Path))
def command(recipes: tuple[Path, ...]) -> None:
    """Say what of this environment is ready, and how to mend what is not.

    RECIPES are Axolotl YAMLs: their untax keys and plugins are checked too, for Axolotl drops the keys of a plugin that
    is not listed without a word, and 0.19 trains on without a plugin that cannot be loaded. Exit code 2 if something
    fails, else 0.
    """
    states = []
    for finding in findings(recipes):
        states.append(finding.state)
        _show(finding)
    click.echo(f"{states.count('ok')} ok, {states.count('warn')} to know, {states.count('fail')} to mend")
    if "fail" in states:
        raise click.exceptions.Exit(2)


def findings(recipes: tuple[Path, ...]) -> Iterator[Finding]:
    """Every check, one after the other, the quick ones first."""
    yield _python()
    yield from map(_package, _PACKAGES)
    yield _plugins()
    yield _accelerate()
    yield from _disks()
    yield _machine()
    yield _threads()
    yield _telemetry()
    for recipe in recipes:
        yield from _recipe(recipe)
    yield _gpu()


def _show(finding: Finding) -> None:
    color = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.state]
    click.echo(f"{click.style(f'{finding.state:4}', fg=color)}  {finding.about:12}  {finding.found}")
    if finding.fix:
        click.echo(f"{'':20}-> {finding.fix}")


def _python() -> Finding:
    from importlib import metadata

    from packaging.specifiers import SpecifierSet

    version = ".".join(map(str, sys.version_info[:3]))
    wanted = metadata.metadata("untax")["Requires-Python"]
    if SpecifierSet(wanted).contains(version):
        return Finding("ok", "python", version)
    return Finding("fail", "python", f"{version}, needed is {wanted}", "Make the environment with a Python that fits.")


def _package(name: str) -> Finding:
    from importlib import metadata

    wanted = _requirements()[name]
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding("fail", name, "not installed", f'pip install "{name}{wanted}"')
    if wanted.contains(version, prereleases=True):
        return Finding("ok", name, version)
    return Finding("fail", name, f"{version}, supported is {wanted}", f'pip install "{name}{wanted}"')


def _requirements() -> dict[str, Any]:
    from importlib import metadata

    from packaging.requirements import Requirement

    parsed = [Requirement(line) for line in metadata.requires("untax") or []]
    return {requirement.name: requirement.specifier for requirement in parsed if requirement.marker is None}


def _plugins() -> Finding:
    from importlib import metadata

    from untax.plugins import manager

    registered = {entry.name for entry in metadata.entry_points(group="untax")}
    missing = [name for name in _HOOKS if name not in registered]
    if missing:
        return Finding("fail", "untax", f"not registered: {', '.join(missing)}", "pip install -e .")
    try:
        manager()
    except UntaxError as error:
        return Finding("fail", "untax", error.problem, error.fix or "")
    except ImportError as error:
        return Finding("fail", "untax", f"a plugin cannot be imported: {error}", "Uninstall or mend that package.")
    return Finding("ok", "untax", f"plugins {', '.join(sorted(registered))}")


def _accelerate() -> Finding:
    """``axolotl train`` starts ``accelerate`` by its name: another environment's would be taken as well."""
    here = Path(sys.executable).parent
    found = shutil.which("accelerate")
    activate = f"source {here / 'activate'}"
    if found is None:
        state = "warn" if (here / "accelerate").is_file() else "fail"
        fix = activate if state == "warn" else "pip install accelerate"
        return Finding(state, "PATH", "no accelerate there: `axolotl train` would not start by hand", fix)
    if Path(found).resolve().parent != here.resolve():
        return Finding("warn", "PATH", f"accelerate is another environment's: {found}", activate)
    return Finding("ok", "PATH", f"accelerate is {found}")


def _disks() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    yield _disk("disk here", Path.cwd(), "Free some space; models, adapters and merges are written here.")
    yield _disk("hub cache", Path(HF_HUB_CACHE), "Free some space, or set HF_HOME to a folder on another disk.")


def _disk(about: str, folder: Path, fix: str) -> Finding:
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    found = f"{free / 1e9:.0f} GB free in {folder}"
    if not os.access(there, os.W_OK):
        return Finding("warn", about, f"{folder} is not writable", "Make it writable, or go to another folder.")
    return Finding("ok", about, found) if free >= _LITTLE_DISK else Finding("warn", about, found, fix)


def _machine() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{cores} CPU cores, {memory / 1e9:.0f} GB of memory"
    if memory < _LITTLE_MEMORY:
        return Finding("warn", "machine", found, "The demo may need more: close other programs.")
    return Finding("ok", "machine", found)


def _threads() -> Finding:
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads:
        return Finding("ok", "threads", f"OMP_NUM_THREADS={threads}")
    fix = "export OMP_NUM_THREADS=1 when several trainings share the CPU (`untax run` sets it by itself)."
    return Finding("ok", "threads", "OMP_NUM_THREADS is not set: one program takes all cores", fix)


def _telemetry() -> Finding:
    if os.environ.get("AXOLOTL_DO_NOT_TRACK", "").lower() in ("1", "true"):
        return Finding("ok", "telemetry", "off (AXOLOTL_DO_NOT_TRACK)")
    return Finding("warn", "telemetry", "Axolotl reports its use to its makers", "export AXOLOTL_DO_NOT_TRACK=1")


def _recipe(path: Path) -> Iterator[Finding]:
    from untax.cli.doctor_recipe import recipe_problems

    problems = list(recipe_problems(path))
    yield from (Finding("fail", "recipe", found, fix) for found, fix in problems)
    if not problems:
        yield Finding("ok", "recipe", f"{path}: every untax key has its plugin, and every plugin can be loaded")


def _gpu() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("fail", "GPU", f"torch cannot be imported: {error}", "pip install -c constraints.txt torch")
    if not torch.cuda.is_available():
        fix = (
            "Small models train on a CPU (`untax recipe ... --device cpu`); for more, a CUDA build of torch and a GPU."
        )
        return Finding("warn", "GPU", "none that torch can use", fix)
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    listed = ", ".join(f"{card.name} ({card.total_memory / 1e9:.0f} GB)" for card in cards)
    if not torch.cuda.is_bf16_supported():
        return Finding("warn", "GPU", f"{listed}, without bf16", "Set `bf16: false` and `fp16: true` in the recipes.")
    return Finding("ok", "GPU", f"{listed}, bf16")
