"""The weights of the bases: are their files there, and whole? Only the headers are read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from untax.check.findings import Finding
from untax.errors import UntaxError

PATTERNS = ("*.safetensors", "*.bin", "*.index.json")


def weight_findings(bases: Iterable[str], folder: Path) -> list[Finding]:
    """A failure for each base whose weights are missing, cut off or incomplete.

    Args:
        bases: the bases as the YAMLs name them; what is no folder, or no model folder, is found elsewhere.
        folder: the run folder.
    """
    return [finding for base in dict.fromkeys(bases) for finding in _findings(base, folder / base)]


def _findings(base: str, place: Path) -> list[Finding]:
    from untax.adapters.base import INDEX_NAME, WEIGHTS_NAME, StoredModel

    if not (place / "config.json").is_file():
        return []
    again = "Copy or download the model again."
    if not any(any(place.glob(pattern)) for pattern in PATTERNS):
        return [Finding("fail", base, f"the folder has no weights, such as {WEIGHTS_NAME}", again)]
    if not any((place / name).is_file() for name in (INDEX_NAME, WEIGHTS_NAME)):
        return []  # Other formats can be trained on, too.
    try:
        StoredModel(place)
    except UntaxError as error:
        return [Finding("fail", error.where or base, error.problem, error.fix or again)]
    return []
