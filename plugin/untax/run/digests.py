"""The present digests of what manifests name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from untax.adapters.stored import ADAPTER_FILES
from untax.data.corpus import identity
from untax.manifest import NOT_READ, digest_file, digest_files, digest_model
from untax.replay.made import tokenizer_identity
from untax.training.inputs import FILE_KEYS


def stale_inputs(manifest: dict[str, Any], config: dict[str, Any], folder: Path) -> list[str]:
    """The inputs that a manifest (or the note of a started training) names and that are not what they were."""
    recorded = manifest.get("inputs") or {}
    known = {key: digest for key, digest in recorded.items() if digest != NOT_READ}
    return [key for key, digest in known.items() if input_digest(key, config, folder) not in (digest, None)]


def input_digest(key: str, config: dict[str, Any], folder: Path) -> str | None:
    """The present digest of an input that a manifest names; None when it is not a thing of this machine."""
    if key in FILE_KEYS:
        file = folder / str(config.get(key))
        return digest_file(file) if file.is_file() else "missing"
    kind, _, dataset = key.partition("/")
    if kind in ("datasets", "test_datasets", "texts"):
        return _digest(dataset, folder, lambda path: identity({"path": path}))
    if key == "tokenizer":
        return _digest(str(config.get(key)), folder, tokenizer_identity)
    return path_digest(str(config.get("base_model")) if key == "base" else key, folder)


def path_digest(name: str, folder: Path) -> str | None:
    """The present digest of a file, an adapter or a model; None when it is not a thing of this machine."""

    def digest(path: Path) -> str:
        if path.is_file():
            return digest_file(path)
        return digest_files(path, ADAPTER_FILES) if (path / "adapter_config.json").is_file() else digest_model(path)

    return _digest(name, folder, digest)


def _digest(name: str, folder: Path, digest: Callable[[Path], str]) -> str | None:
    path = folder / name
    if path.exists():
        return digest(path)
    # Only what the run itself makes can be missed; a name that is no path here is a hub's.
    return "missing" if name.removeprefix("./").startswith("outputs/") else None
