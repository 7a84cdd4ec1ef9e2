"""The YAMLs of a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from untax.errors import UntaxError
from untax.files import disk_error

LISTS = ("plugins", "datasets", "test_datasets")
"""Axolotl keys that hold lists."""


def read_yaml(path: Path) -> dict[str, Any]:
    """A generated YAML as it stands on disk.

    Raises:
        UntaxError: it is missing, unreadable or no mapping of texts.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UntaxError(
            "A YAML of this run folder is missing.",
            where=path,
            fix="Write it again: untax recipe --from untax.yaml -o . (in the run folder).",
        ) from error
    except OSError as error:
        raise disk_error(error, path) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UntaxError(f"This is no YAML: {error}", where=path, fix="Correct the file.") from error
    if not isinstance(content, dict):
        raise UntaxError("This YAML holds no keys.", where=path, fix="Correct the file.")
    odd = [key for key in content if not isinstance(key, str)]
    if odd:
        raise UntaxError(f"This YAML has a key that is no text: {odd[0]!r}.", where=path, fix="Correct the file.")
    single = [key for key in LISTS if content.get(key) and not isinstance(content[key], list)]
    if single:
        raise UntaxError(f"This YAML has no list where one belongs: {single[0]}.", where=path, fix="Correct the file.")
    return content
