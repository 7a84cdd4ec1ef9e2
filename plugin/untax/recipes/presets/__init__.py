"""The papers' own settings, and those for bases and mixes of today, as recipes that are checked in.

``python -m untax.recipes.presets`` writes ``recipes/`` and ``mergekit_configs/`` of a checkout again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from untax.files import write_text
from untax.recipes.graph import Layout
from untax.recipes.papers import ZEPHYR_TEMPLATE
from untax.recipes.presets import current, dtm, paft
from untax.recipes.presets.preset import Preset
from untax.recipes.spec import RunSpec, check_spec
from untax.recipes.write import write_run_folder

__all__ = ["CATALOGUE", "PRESETS", "REPOSITORY", "ZEPHYR_TEMPLATE", "Preset", "preset", "write_presets"]

REPOSITORY = "untax"
CATALOGUE: dict[str, Preset] = {one.name: one for one in (*dtm.PRESETS, *paft.PRESETS, *current.PRESETS)}
PRESETS: dict[str, dict[str, Any]] = {name: one.content for name, one in CATALOGUE.items()}
"""Name -> what ``untax.yaml`` says."""


def preset(name: str) -> RunSpec:
    """The spec of a checked-in recipe."""
    return check_spec(PRESETS[name], where=f"preset {name}")


def write_presets(repository: Path) -> None:
    """Write ``recipes/<name>/`` and ``mergekit_configs/<name>/`` of every preset into a checkout, and the index."""
    from untax.recipes.presets.estimates import costs
    from untax.recipes.presets.readme import index, readme

    needed = {}
    for name, one in CATALOGUE.items():
        layout = Layout(name)
        written = write_run_folder(
            preset(name), repository, force=True, notes=[one.note], layout=layout, shown_folder=REPOSITORY
        )
        _remove_others(repository, {layout.spec, *written.plan.files}, name)
        needed[name] = costs(one, written.plan)
        write_text(repository / "recipes" / name / "README.md", readme(one, needed[name]))
    write_text(repository / "recipes" / "README.md", index([(one, needed[name]) for name, one in CATALOGUE.items()]))


def _remove_others(repository: Path, generated: set[str], name: str) -> None:
    """YAMLs of a preset that it expanded to before and does no longer."""
    for folder in ("recipes", "mergekit_configs"):
        for path in (repository / folder / name).glob("*.yaml"):
            if path.relative_to(repository).as_posix() not in generated:
                path.unlink()
