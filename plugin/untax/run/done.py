"""Whether a node is finished: its manifests are there, their outputs unchanged, their inputs what they are now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from untax.errors import UntaxError
from untax.evaluate.score import is_scored
from untax.evaluate.score import manifest_name as scores_name
from untax.manifest import MANIFEST_NAME, changed_outputs, digest_file, read_manifest
from untax.recipes.graph import Node
from untax.run.commands import values
from untax.run.digests import stale_inputs
from untax.run.identity import Verdict, assignment_differs, changed_of_merge, judge_training
from untax.run.proof import missing_proof
from untax.run.shape import check_shape
from untax.run.typed import otherwise_typed
from untax.run.versions import changed_versions, version_reason
from untax.run.yamls import read_yaml
from untax.training.asked import Asked
from untax.training.inputs import BASE, PATH_KEYS
from untax.training.started import asked_by


def unfinished(node: Node, folder: Path, suite: str | None, *, rerun_on_version: bool = False) -> str | None:
    """Why the node has to run, or None when it is finished.

    Args:
        node: the node.
        folder: the run folder.
        suite: the suite of score nodes.
        rerun_on_version: whether other versions of the packages that decide what it makes are a reason.
    """
    models = node.models or ("",) * len(node.outputs)
    for output, model in zip(node.outputs, models, strict=True):
        try:
            reason = _unscored(model, folder, output, suite) if node.kind == "score" else _unmade(node, folder, output)
        except UntaxError as error:
            reason = error.problem  # an unreadable manifest vouches for nothing
        if reason:
            return f"{output}: {reason}"
    return version_reason(version_changes(node, folder)) if rerun_on_version else None


def anew(node: Node, folder: Path, suite: str | None) -> Node:
    """The node as it has to be typed: with ``--force`` if nothing but versions is a reason, for `untax eval` keeps
    scores of the same weights.
    """
    if node.kind != "score" or unfinished(node, folder, suite) is not None:
        return node
    return replace(node, command=(*node.command, "--force"))


def version_changes(node: Node, folder: Path) -> dict[str, tuple[str, str]]:
    """Package -> (version that an output was made with, version that is here), of those that matter and differ."""
    found: dict[str, tuple[str, str]] = {}
    for output in node.outputs:
        try:
            manifest = _manifest(node, folder / output)
        except UntaxError:
            continue
        found |= changed_versions(node.kind, manifest) if manifest is not None else {}
    return found


def awaits_rows(node: Node, folder: Path) -> bool:
    """Whether a training is finished if its cluster, when the corpus has been dispersed again, holds what it held.

    Of trainings that wait for a dispersal alone; whether they run is known when that is done.
    """
    if node.kind != "train":
        return False
    try:
        manifest = _manifest(node, folder / node.outputs[0])
        if manifest is None or changed_outputs(folder / node.outputs[0], manifest):
            return False
        verdict = _verdict(manifest, read_yaml(folder / str(node.config)), folder)
    except UntaxError:
        return False
    return verdict is not None and verdict.awaits


def begun_otherwise(begun: Mapping[str, Any], config: Path, folder: Path) -> str | None:
    """Why checkpoints are not those of the training that a YAML asks for now, or None.

    Args:
        begun: the note beside them (``untax.training.started.started_with``).
        config: the YAML, from the run folder on.
        folder: the run folder.
    """
    content = read_yaml(folder / config)
    recorded = asked_by(begun)
    if recorded is not None:
        changed = judge_training(recorded, content, folder).changed
    elif begun.get("config") == digest_file(folder / config):
        changed = tuple(stale_inputs(dict(begun), content, folder))
    else:
        changed = (str(config),)
    return f"{', '.join(changed)} was changed" if changed else None


def manifest_name(node: Node) -> str:
    """The name of the manifest in a node's output; of a statistic that of its file, of scores that of their suite."""
    files = values(node.command, "-o") if node.kind == "fisher" else []
    suites = values(node.command, "--suite") if node.kind == "score" else []
    if suites:
        return scores_name(suites[-1])
    return f"{Path(files[-1]).stem}.untax.json" if files else MANIFEST_NAME


def _manifest(node: Node, output: Path) -> dict[str, Any] | None:
    manifest = read_manifest(output, manifest_name(node))
    if manifest is not None:
        check_shape(manifest, output)
    return manifest


def _unscored(model: str, folder: Path, results: str, suite: str | None) -> str | None:
    local = folder / model
    if is_scored(str(local) if local.is_dir() else model, str(suite), folder / results):
        return None
    scored_before = (folder / results / f"{suite}.json").exists()
    return "the weights or the suite changed since they were scored" if scored_before else "not scored yet"


def _unmade(node: Node, folder: Path, name: str) -> str | None:
    output = folder / name
    manifest = _manifest(node, output)
    if manifest is None:
        return "not made yet"
    changed = changed_outputs(output, manifest)
    if changed:
        return f"{', '.join(changed)} was changed or removed"
    if node.kind in ("replay", "fisher"):
        return otherwise_typed(node, manifest, folder)
    config = read_yaml(folder / str(node.config))
    if node.kind == "disperse":
        return _differing_assignment(config, manifest, folder)
    if node.kind == "train":
        return _untrained(node, manifest, config, folder)
    if _config(manifest).get("keys") is None:
        return _by_text(node, manifest, config, folder)
    return _told(changed_of_merge(manifest, config, folder), node)


def _differing_assignment(config: dict[str, Any], manifest: dict[str, Any], folder: Path) -> str | None:
    if manifest["what"] != "assignment" or not manifest.get("disperse"):
        return f"it is no assignment, but {manifest['what']}"
    return assignment_differs(config, manifest, folder) or _stale(manifest, config, folder)


def _untrained(node: Node, manifest: dict[str, Any], config: dict[str, Any], folder: Path) -> str | None:
    verdict = _verdict(manifest, config, folder)
    output = folder / node.outputs[0]
    if verdict is None:
        return _by_text(node, manifest, config, folder) or missing_proof(config, manifest, output=output)
    if verdict.awaits:
        return "whether its cluster holds the same rows is known when the corpus has been dispersed again"
    told = _told(verdict.changed, node)
    return told or missing_proof(config, manifest, output=output, same_rows=verdict.same_rows)


def _verdict(manifest: Mapping[str, Any], config: dict[str, Any], folder: Path) -> Verdict | None:
    """None of a manifest of an older version, which knows no more of its YAML than the digest."""
    keys = _config(manifest).get("keys")
    if not isinstance(keys, Mapping):
        return None
    rows = (manifest.get("disperse") or {}).get("trained_on")
    return judge_training(Asked(keys, manifest.get("inputs") or {}, rows), config, folder)


def _config(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    return manifest.get("config") or {}


def _by_text(node: Node, manifest: dict[str, Any], config: dict[str, Any], folder: Path) -> str | None:
    """Of a manifest of an older version: whether the YAML's text, or an input, is another."""
    if _config(manifest).get("digest") != digest_file(folder / str(node.config)):
        return f"{node.config} was changed"
    return _stale(manifest, config, folder)


def _stale(manifest: dict[str, Any], config: dict[str, Any], folder: Path) -> str | None:
    stale = stale_inputs(manifest, config, folder)
    return f"{', '.join(stale)} was changed" if stale else None


def _told(changed: Sequence[str], node: Node) -> str | None:
    """Inputs are told by the names that they have in a manifest, keys as those of the YAML."""
    inputs = [name for name in changed if "/" in name or name in (BASE, "tokenizer") or name in PATH_KEYS]
    keys = [name for name in changed if name not in inputs]
    if keys:
        return f"{node.config} was changed: {', '.join(keys)}"
    return f"{', '.join(inputs)} was changed" if inputs else None
