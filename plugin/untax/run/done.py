"""Whether a node is finished: its manifests are there, their outputs unchanged, their inputs what they are now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from untax.adapters.stored import ADAPTER_FILES
from untax.data.corpus import identity
from untax.errors import UntaxError
from untax.evaluate.score import is_scored
from untax.manifest import NOT_READ, changed_outputs, digest_file, digest_files, digest_model, read_manifest
from untax.recipes.graph import Node
from untax.run.proof import missing_proof
from untax.training.record import FILE_KEYS


def unfinished(node: Node, folder: Path, suite: str | None) -> str | None:
    """Why the node has to run, or None when it is finished.

    Args:
        node: the node.
        folder: the run folder.
        suite: the suite of score nodes.
    """
    models = node.models or ("",) * len(node.outputs)
    for output, model in zip(node.outputs, models, strict=True):
        try:
            reason = _unscored(model, folder, output, suite) if node.kind == "score" else _unmade(node, folder, output)
        except UntaxError as error:
            reason = error.problem  # an unreadable manifest vouches for nothing
        if reason:
            return f"{output}: {reason}"
    return None


def _unscored(model: str, folder: Path, results: str, suite: str | None) -> str | None:
    local = folder / model
    if is_scored(str(local) if local.is_dir() else model, str(suite), folder / results):
        return None
    scored_before = (folder / results / f"{suite}.json").exists()
    return "the weights or the suite changed since they were scored" if scored_before else "not scored yet"


def _unmade(node: Node, folder: Path, name: str) -> str | None:
    output = folder / name
    manifest = read_manifest(output)
    if manifest is None:
        return "not made yet"
    changed = changed_outputs(output, manifest)
    if changed:
        return f"{', '.join(changed)} was changed or removed"
    if node.kind != "disperse" and (manifest.get("config") or {}).get("digest") != digest_file(
        folder / str(node.config)
    ):
        return f"{node.config} was changed"
    config = read_yaml(folder / str(node.config))
    stale = stale_inputs(manifest, config, folder)
    if stale:
        return f"{', '.join(stale)} was changed"
    return missing_proof(config, manifest) if node.kind in ("train", "disperse") else None


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
    name = dataset if kind in ("datasets", "test_datasets") else str(config.get("base_model")) if key == "base" else key
    path = folder / name
    if not path.exists():
        # Only what the run itself makes can be missed; a name that is no path here is a hub's.
        return "missing" if name.removeprefix("./").startswith("outputs/") else None
    if kind in ("datasets", "test_datasets"):
        return identity({"path": path})
    if path.is_file():
        return digest_file(path)
    return digest_files(path, ADAPTER_FILES) if (path / "adapter_config.json").is_file() else digest_model(path)


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
