"""The YAMLs of a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from untax.errors import UntaxError


def read_yaml(path: Path) -> dict[str, Any]:
    """A generated YAML as it stands on disk.

    Raises:
        UntaxError: it is missing or no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UntaxError(
            "A YAML of this run folder is missing.",
            where=path,
            fix="Write it again: untax recipe --from untax.yaml -o . (in the run folder).",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UntaxError(f"This is no YAML: {error}", where=path, fix="Correct the file.") from error
    if not isinstance(content, dict):
        raise UntaxError("This YAML holds no keys.", where=path, fix="Correct the file.")
    return content
