"""Prepared data of changed files is kept apart: Axolotl's cache is keyed by a dataset's path, not by its content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from untax.data.corpus import identity
from untax.manifest import digest_json

DEFAULT_PREPARED_PATH = "last_run_prepared"
KEY_DIGITS = 16


def separate_prepared_data(cfg: Any) -> None:
    """Extend ``dataset_prepared_path`` by a key of the local datasets' content; hub datasets are left to Axolotl."""
    identities = {
        f"{key}/{entry['path']}": identity(entry)
        for key in ("datasets", "test_datasets")
        for entry in cfg.get(key) or []
        if entry.get("path") and Path(entry["path"]).exists()
    }
    if identities:
        prepared = Path(cfg.dataset_prepared_path or DEFAULT_PREPARED_PATH)
        cfg.dataset_prepared_path = str(prepared / digest_json(identities)[:KEY_DIGITS])
