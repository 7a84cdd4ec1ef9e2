"""mergekit YAMLs that were edited by hand, as mergekit's own schema takes them; what the recipe expands to is right."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from untax.check.findings import Finding
from untax.errors import UntaxError
from untax.recipes.graph import Plan


def merge_findings(plan: Plan, folder: Path, edited: Collection[str]) -> list[Finding]:
    """What a merge would refuse or ignore, found before the trainings that it waits for.

    Args:
        plan: of the run folder.
        folder: the run folder.
        edited: the YAMLs that differ from what the recipe expands to.
    """
    configs = [str(node.config) for node in plan.nodes if node.kind == "merge" and node.config in edited]
    return [finding for config in configs for finding in _findings(config, folder)]


def _findings(config: str, folder: Path) -> list[Finding]:
    from untax.merge import mergekit_yaml
    from untax.merge.checks import check_values
    from untax.merge.config_file import read_merge_config
    from untax.merge.parameters import check_parameters
    from untax.merge.plan import unknown_keys

    mergekit_yaml.import_quietly()
    found: list[Finding] = []
    try:
        read = read_merge_config(folder / config)
    except UntaxError as error:
        return [_failed(config, error)]
    checks: list[Callable[[], list[str] | None]] = [
        lambda: unknown_keys(read),
        lambda: check_values(read.raw, where=config),
        lambda: check_parameters(mergekit_yaml.read_config(read.raw, where=config), where=config),
    ]
    for check in checks:
        try:
            found += [Finding("note", config, f"Ignored: {text}", "Leave it out.") for text in check() or []]
        except UntaxError as error:
            found.append(_failed(config, error))
    return found


def _failed(config: str, error: UntaxError) -> Finding:
    return Finding("fail", config, error.problem, error.fix or "Correct the YAML.")
