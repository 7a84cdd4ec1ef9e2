"""Whether a node is finished: its manifests are there, their outputs unchanged, their inputs what they are now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from untax.adapters.stored import ADAPTER_FILES
from untax.data.corpus import identity
from untax.errors import UntaxError
from untax.evaluate.score import is_scored
from untax.manifest import (
    MANIFEST_NAME,
    NOT_READ,
    changed_outputs,
    digest_file,
    digest_files,
    digest_model,
    read_manifest,
)
from untax.recipes.graph import Node
from untax.replay.made import tokenizer_identity
from untax.replay.request import read_like, tokenizer_of, unchanged
from untax.run.commands import same, values
from untax.run.proof import missing_proof
from untax.run.yamls import read_yaml
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
    manifest = read_manifest(output, manifest_name(node))
    if manifest is None:
        return "not made yet"
    changed = changed_outputs(output, manifest)
    if changed:
        return f"{', '.join(changed)} was changed or removed"
    if node.kind in ("replay", "fisher"):
        return _otherwise(node, manifest, folder)
    if node.kind != "disperse" and (manifest.get("config") or {}).get("digest") != digest_file(
        folder / str(node.config)
    ):
        return f"{node.config} was changed"
    config = read_yaml(folder / str(node.config))
    stale = stale_inputs(manifest, config, folder)
    if stale:
        return f"{', '.join(stale)} was changed"
    return missing_proof(config, manifest) if node.kind in ("train", "disperse") else None


def manifest_name(node: Node) -> str:
    """The name of the manifest in a node's output; of a statistic that of its file."""
    files = values(node.command, "-o") if node.kind == "fisher" else []
    return f"{Path(files[-1]).stem}.untax.json" if files else MANIFEST_NAME


def _otherwise(node: Node, manifest: dict[str, Any], folder: Path) -> str | None:
    """Why what a command without a YAML of its own made is not what it would make now."""
    if not same(manifest.get("command"), node.command):
        return "it was made by another command line"
    if node.kind == "replay":
        changed = [] if _like_as_before(node, manifest, folder) else [values(node.command, "--like")[-1]]
        changed += stale_inputs(manifest, {"tokenizer": tokenizer_of(manifest)}, folder)
    else:
        base, _, adapter = node.command[2].partition("+")
        named = {"base": base, "adapter": adapter, "data": values(node.command, "--data")[-1]}
        inputs = {named[key]: digest for key, digest in (manifest.get("inputs") or {}).items() if key in named}
        changed = [name for name, digest in inputs.items() if path_digest(name, folder) not in (digest, None)]
    return f"{', '.join(changed)} was changed" if changed else None


def _like_as_before(node: Node, manifest: dict[str, Any], folder: Path) -> bool:
    """Whether the YAML whose instruction data is replayed still says what counts; its other keys do not."""
    configs = values(node.command, "--like")
    if not configs:
        return True
    like = read_like(read_yaml(folder / configs[-1]), folder, folder / node.outputs[0])
    bases, lengths = values(node.command, "--base"), values(node.command, "--sequence-len")
    return unchanged(
        manifest,
        like,
        base=bases[-1] if bases else None,
        sequence_len=int(lengths[-1]) if lengths else None,
        trust_remote_code="--trust-remote-code" in node.command,
    )


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
