"""The assignment of an Axolotl YAML, made without training anything."""

from __future__ import annotations

from pathlib import Path

import yaml

from untax.data.corpus import read_corpus
from untax.disperse.assignment import Assignment, assignment_path, obtain
from untax.disperse.settings import read_settings
from untax.errors import UntaxError


def disperse(config: Path) -> str:
    """Make or check the assignment of ``config`` and describe it.

    Raises:
        UntaxError: the YAML cannot be read or names no clusters, or the assignment cannot be made.
    """
    cfg = _read(config)
    settings = read_settings(cfg, where=config, cluster_needed=False)
    if settings.clusters is None or settings.assignment is None:
        missing = "disperse_clusters" if settings.clusters is None else "disperse_assignment"
        raise UntaxError(f"The key {missing} is missing.", where=config, fix=f"Add {missing}: to the YAML.")
    from axolotl.utils.dict import DictDefault

    corpus = read_corpus(DictDefault(cfg))
    return _described(obtain(corpus, settings, assignment_path(settings.assignment)))


def _read(config: Path) -> dict[str, object]:
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise UntaxError(f"Cannot read the YAML: {error.strerror}.", where=config, fix="Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UntaxError(f"This is no YAML: {error}", where=config, fix="Correct the file.") from error
    if not isinstance(content, dict):
        raise UntaxError("The YAML holds no keys.", where=config, fix="Name an Axolotl YAML.")
    return content


def _described(assignment: Assignment) -> str:
    section = assignment.section
    lines = [f"{section['rows']} rows in {section['clusters']} clusters: {assignment.path}", ""]
    header = ["source", *(str(cluster) for cluster in range(section["clusters"]))]
    rows = [[name, *map(str, sizes)] for name, sizes in section["sources"].items()]
    table = [header, *rows, ["all", *map(str, section["sizes"])]]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    return "\n".join(lines)
