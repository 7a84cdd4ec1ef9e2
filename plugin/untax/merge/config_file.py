"""A mergekit YAML, read without mergekit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from untax.errors import UntaxError
from untax.merge.references import Reference, read_references


@dataclass(frozen=True)
class MergeConfig:
    """A mergekit YAML.

    Attributes:
        path: the file.
        text: its content.
        raw: its content, parsed.
        references: the models it names, in order.
    """

    path: Path
    text: str
    raw: dict[str, Any]
    references: list[Reference]


def read_merge_config(path: Path) -> MergeConfig:
    """Read a mergekit YAML, without mergekit.

    Raises:
        UntaxError: the file cannot be read or names no models.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        raw = yaml.safe_load(text)
    except FileNotFoundError as error:
        raise UntaxError("There is no such merge configuration.", where=path, fix="Check the path.") from error
    except IsADirectoryError as error:
        raise UntaxError(
            "The merge configuration is a folder.",
            where=path,
            fix="Name a YAML file first, then OUT_PATH.",
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UntaxError(
            f"The merge configuration cannot be read: {error}.", where=path, fix="Mend the YAML."
        ) from error
    if not isinstance(raw, dict):
        raise UntaxError(
            "The merge configuration is not a mapping of keys.", where=path, fix="See mergekit's examples."
        )
    if not isinstance(raw.get("merge_method"), str):
        raise UntaxError("The merge configuration names no merge_method.", where=path, fix="linear, for instance.")
    references = read_references(raw, where=path)
    if not references:
        raise UntaxError("The merge configuration names no models.", where=path, fix="List them under `models:`.")
    return MergeConfig(path, text, raw, references)
