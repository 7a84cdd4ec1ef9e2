"""Prepared data of changed files is kept apart: Axolotl's cache is keyed by a dataset's path, not by its content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from untax.manifest import digest_file, digest_json

DEFAULT_PREPARED_PATH = "last_run_prepared"
KEY_DIGITS = 16


def separate_prepared_data(cfg: Any) -> None:
    """Extend ``dataset_prepared_path`` by a key of the local datasets' content; hub datasets are left to Axolotl."""
    identities = {
        f"{key}/{entry['path']}": _identity(Path(entry["path"]))
        for key in ("datasets", "test_datasets")
        for entry in cfg.get(key) or []
        if entry.get("path") and Path(entry["path"]).exists()
    }
    if identities:
        prepared = Path(cfg.dataset_prepared_path or DEFAULT_PREPARED_PATH)
        cfg.dataset_prepared_path = str(prepared / digest_json(identities)[:KEY_DIGITS])


def _identity(path: Path) -> Any:
    """A file's digest; for a folder, which may be large, names, sizes and times of what is in it."""
    if path.is_file():
        return digest_file(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return [(str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
