"""``untax.json``: what made an artifact, written last and atomically beside it.

An artifact without its manifest is unfinished; one whose outputs no longer match it was changed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from untax.digest_records import (
    LARGE,
    SAMPLE_BYTES,
    SAMPLES,
    file_identity,
    is_settled,
    record_digest,
    recorded_digest,
    sampled,
)
from untax.errors import UntaxError
from untax.files import write_text

MANIFEST_NAME = "untax.json"
NOT_READ = "not read"
"""In place of the digest of an input that played no part, and was too large to be read for its digest alone."""
PACKAGES = (
    *("untax", "axolotl", "mergekit", "peft", "trl", "transformers", "torch", "datasets", "lm_eval", "accelerate"),
    *("faiss-cpu", "scikit-learn", "sentence-transformers"),
)


def digest_bytes(content: bytes) -> str:
    """SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    return digest_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content, as ``sha256sum`` prints it; re-read only when the file changed, a large one not even
    by another process.

    A file changed within the last seconds is always read: one more change might leave its time stamp as it is.
    """
    status = path.stat()
    # A sample of a small file would be all of it.
    if not is_settled(status) or status.st_size <= SAMPLES * SAMPLE_BYTES:
        return _digest_file.__wrapped__(str(path), ())
    return _digest_file(str(path), (*file_identity(status), sampled(path)))


@functools.lru_cache(maxsize=4096)
def _digest_file(path: str, identity: tuple[int | str, ...]) -> str:
    recorded = recorded_digest(Path(path))
    if recorded is not None:
        return recorded
    with open(path, "rb") as handle:
        before = os.fstat(handle.fileno())
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    record_digest(Path(path), digest, before)
    return digest


def digest_files(folder: Path, patterns: Iterable[str]) -> str:
    """One digest for the names and contents of the files of ``folder`` that match ``patterns``."""
    files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
    return digest_json({file.relative_to(folder).as_posix(): digest_file(file) for file in files})


def digest_model(model: str | Path, revision: str | None = None) -> str:
    """The identity of a model: its weights' and config's digest, or ``hub:<id>@<commit>``.

    A hub id that is not in the local cache has no known commit and gives ``hub:<id>@unknown``.

    Args:
        model: a folder or hub id.
        revision: of the hub id; ``main`` by default.

    Raises:
        UntaxError: it is no folder, and no hub could have it by this name.
    """
    path = Path(model)
    if path.is_dir():
        return digest_files(path, ["*.safetensors", "config.json"])
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    try:
        cached = try_to_load_from_cache(str(model), "config.json", revision=revision)
    except HFValidationError as error:
        fix = "Put it back, or correct the path."
        raise UntaxError(f"There is no model folder {model}.", where=model, fix=fix) from error
    commit = Path(cached).parent.name if isinstance(cached, str) else "unknown"
    return f"hub:{model}@{commit}"


def model_digest_is_known(model: str | Path) -> bool:
    """Whether ``digest_model`` need not read large files."""
    path = Path(model)
    if not path.is_dir():
        return True
    return all(file.stat().st_size < LARGE or recorded_digest(file) for file in path.glob("*.safetensors"))


def package_versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a result."""
    from importlib import metadata

    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def write_manifest(
    folder: Path,
    *,
    what: str,
    outputs: Iterable[str],
    started: float,
    digests: Mapping[str, str] | None = None,
    command: list[str] | None = None,
    name: str = MANIFEST_NAME,
    **sections: Any,
) -> dict[str, Any]:
    """Write ``folder/untax.json`` and return it.

    Args:
        folder: where the artifact lies.
        what: the kind of artifact: ``assignment``, ``adapter``, ``model``, ``replay``, ``fisher``, ``gram`` or
            ``results``.
        outputs: names, relative to ``folder``, of the files that are the artifact.
        started: ``time.time()`` when the work began.
        digests: of those outputs whose digest is known from writing them.
        command: the command line; the present one by default.
        name: the manifest's own file name, for folders that hold several artifacts (``<suite>.untax.json``).
        sections: further keys (``config``, ``inputs``, ``seed``, ``disperse``, ``penalty``, ...).
    """
    manifest = {
        "what": what,
        "command": command if command is not None else [Path(sys.argv[0]).name, *sys.argv[1:]],
        **sections,
        "outputs": {output: (digests or {}).get(output) or digest_file(folder / output) for output in sorted(outputs)},
        "versions": package_versions(),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "wall_seconds": round(max(0.0, time.time() - started), 3),  # a clock that is set back knows no better
    }
    write_text(folder / name, json.dumps(manifest, indent=2, sort_keys=False, ensure_ascii=False) + "\n")
    return manifest


def read_manifest(folder: Path, name: str = MANIFEST_NAME) -> dict[str, Any] | None:
    """The manifest beside an artifact, or None when there is none.

    Raises:
        UntaxError: the file is there but is no manifest.
    """
    path = folder / name
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as error:
        raise UntaxError(
            f"The manifest cannot be read: {error}.", where=path, fix="Remove it and make the artifact again."
        ) from error
    if not _is_manifest(manifest):
        raise UntaxError("This is not an untax manifest.", where=path, fix="Remove it and make the artifact again.")
    return manifest


def _is_manifest(content: Any) -> bool:
    """Whether what every reader takes for granted is there; JSON keys are text by themselves."""
    if not isinstance(content, dict) or not isinstance(content.get("what"), str):
        return False
    outputs = content.get("outputs")
    return isinstance(outputs, dict) and all(isinstance(digest, str) for digest in outputs.values())


def changed_outputs(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Names of the outputs that are missing or whose content is not what the manifest says."""
    return [
        name
        for name, digest in manifest["outputs"].items()
        if not (folder / name).is_file() or digest_file(folder / name) != digest
    ]
