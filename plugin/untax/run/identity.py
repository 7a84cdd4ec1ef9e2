"""Whether what a training was asked for, or a merge, is what its YAML asks for now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from untax.data.corpus import entries_digest
from untax.disperse.rows import cluster_sources
from untax.disperse.settings import read_settings
from untax.errors import UntaxError
from untax.manifest import MANIFEST_NAME, digest_files, read_manifest
from untax.merge import asked as merged
from untax.merge.side_files import TOKENIZER_FILES
from untax.run.digests import path_digest
from untax.training.asked import MISSING, Asked, differences, plain
from untax.training.inputs import (
    BASE,
    FILE_KEYS,
    base_digest,
    dataset_identities,
    entries_of,
    entry_name,
    local_path,
    named_inputs,
)


@dataclass(frozen=True)
class Verdict:
    """What a training is, beside what its YAML asks for.

    Attributes:
        changed: the inputs and keys that are others.
        same_rows: whether its cluster holds the very rows that it was trained on, whatever the cluster is called now.
        awaits: whether all but its rows is the same, and those are known only when the corpus has been dispersed again.
    """

    changed: tuple[str, ...] = ()
    same_rows: bool = False
    awaits: bool = False


def judge_training(recorded: Asked, config: Mapping[str, Any], folder: Path) -> Verdict:
    """Compare what a training was asked for with its YAML and inputs as they are now.

    Args:
        recorded: of its manifest, or of the note that it left when it was started.
        config: its YAML.
        folder: the run folder.
    """
    present = Asked(plain(config), present_inputs(config, folder), present_rows(config, folder))
    if recorded.rows is not None and present.rows is not None:
        changed = differences(recorded, present)
        return Verdict(tuple(changed), same_rows=recorded.rows == present.rows)
    as_written = differences(Asked(recorded.keys, recorded.inputs), Asked(present.keys, present.inputs))
    if not as_written or recorded.rows is None or config.get("disperse_clusters") is None:
        return Verdict(tuple(as_written))
    besides = differences(
        Asked(recorded.keys, recorded.inputs, recorded.rows), Asked(present.keys, present.inputs, recorded.rows)
    )
    return Verdict(tuple(as_written), awaits=not besides)


def present_inputs(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The digests of all that a training's YAML names; of what the run makes and has not yet, that it is missing."""
    found = named_inputs(config, folder)
    for key, entry in entries_of(config):
        if local_path(entry["path"], folder) is None and of_run(entry["path"]):
            found[f"{key}/{entry_name(entry)}"] = MISSING
    found |= {key: MISSING for key in FILE_KEYS if config.get(key) and key not in found}
    base = base_digest(config, folder)
    if base is None and of_run(config.get("base_model")):
        base = MISSING
    return found if base is None else {BASE: base, **found}


def of_run(name: object) -> bool:
    """Whether a name that is no path here can only be something that the run makes; any other may be a hub's."""
    return str(name).removeprefix("./").startswith("outputs/")


def present_rows(config: Mapping[str, Any], folder: Path) -> list[dict[str, Any]] | None:
    """What the cluster of a dispersed training holds now, or None where no finished assignment of its rows tells."""
    if config.get("disperse_clusters") is None or not config.get("disperse_assignment"):
        return None
    path = Path(str(config["disperse_assignment"]))
    place = folder / (path.parent if path.suffix == ".parquet" else path)
    try:
        manifest = read_manifest(place, MANIFEST_NAME)
        if manifest is None or assignment_differs(config, manifest, folder):
            return None
        entries = [entry for entry in plain(config.get("datasets") or []) if isinstance(entry, dict)]
        return cluster_sources(manifest["disperse"], entries, int(config.get("disperse_cluster") or 0))
    # An assignment that was edited by hand tells nothing; its own node is told why.
    except (UntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None


def assignment_differs(config: Mapping[str, Any], manifest: Mapping[str, Any], folder: Path) -> str | None:
    """Why an assignment is not the one that a YAML asks for, or None.

    Raises:
        UntaxError: the YAML's keys are wrong.
    """
    section = manifest["disperse"]
    if section.get("entries") != entries_digest(config.get("datasets") or []):
        return "datasets now names other rows than it was made from"
    settings = read_settings(config, where="the YAML", cluster_needed=False)
    differing = [f"{key} {old!r} instead of {new!r}" for key, (old, new) in settings.differences(section).items()]
    if differing:
        return f"it was made with {', '.join(differing)}"
    recorded = manifest.get("inputs") or {}
    present = dataset_identities({"datasets": config.get("datasets")}, folder)
    stale = [name for name, digest in present.items() if recorded.get(name, digest) != digest and len(digest) == 64]
    return f"{', '.join(stale)} was changed" if stale else None


def changed_of_merge(manifest: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> list[str]:
    """The inputs and keys of a merge that are others than when it was made, by content."""
    keys, inputs = manifest["config"]["keys"], manifest.get("inputs") or {}

    def digest(name: str) -> str | None:
        model = name.removeprefix(merged.tokenizer_of(""))
        if model == name:
            return path_digest(name, folder)
        return digest_files(folder / model, TOKENIZER_FILES) if (folder / model).is_dir() else None

    return merged.differences(keys, inputs, merged.as_json(config), digest)
