"""YAMLs that are not what the recipe expands to: edited by hand, or older than it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from untax.check.findings import Finding
from untax.manifest import digest_file
from untax.recipes.spec import SPEC_NAME
from untax.recipes.write import RECORD

EXPAND = f"untax recipe --from {SPEC_NAME}"


def edited_findings(names: Iterable[str], folder: Path) -> list[Finding]:
    """A note for each, with what would bring it in line.

    Args:
        names: the YAMLs that differ from what ``untax.yaml`` expands to.
        folder: the run folder.
    """
    record = _record(folder)
    return [_finding(name, record.get(name), digest_file(folder / name)) for name in names]


def _finding(name: str, generated: Any, present: str) -> Finding:
    differs = f"it differs from what {SPEC_NAME} expands to, and is run as it stands"
    if generated == present:
        return Finding("note", name, f"older than {SPEC_NAME}: {differs}", f"`{EXPAND}` writes it again.")
    fix = f"`{EXPAND} --diff` shows how; `{EXPAND} --force` writes it again."
    what = "edited by hand" if generated else f"edited by hand, or older than {SPEC_NAME}"
    return Finding("note", name, f"{what}: {differs}", fix)


def _record(folder: Path) -> dict[str, Any]:
    """{file: digest of the text that was generated last}; nothing without a readable record."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
