"""What a replay text was made of, and whether one that is there was made of the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from untax.data.corpus import identity
from untax.errors import UntaxError
from untax.manifest import changed_outputs, digest_files, digest_model, read_manifest
from untax.replay.request import FILE_NAME, Request
from untax.replay.sources import source_identity

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model")


@dataclass(frozen=True)
class Made:
    """What was written.

    Attributes:
        path: the file.
        facts: the manifest's section ``replay``: ``rows``, ``tokens``, the number of ``texts`` they are from, how many
            are ``later_pieces`` of one, whether ``every_text`` was used, and ``instruction_rows`` or
            ``instruction_tokens`` if they were counted.
    """

    path: Path
    facts: dict[str, Any]


def identities(request: Request) -> dict[str, str]:
    """The digests of the texts, of the tokenizer, and of the instruction data if it is counted.

    Raises:
        UntaxError: the hub does not know a dataset, or cannot be asked.
    """
    counted = request.like.entries if request.like and request.rows is None else ()
    return {
        "tokenizer": tokenizer_identity(request.tokenizer),
        **{f"texts/{source.path}": source_identity(source) for source in request.sources},
        **{f"datasets/{entry['path']}": identity(entry) for entry in counted if entry.get("path")},
    }


def tokenizer_identity(model: str | Path) -> str:
    """The digest of a folder's tokenizer files; of a model of the hub its id and commit."""
    path = Path(model)
    return digest_files(path, TOKENIZER_FILES) if path.is_dir() else digest_model(model)


def same_as(out: Path, request: Request, inputs: dict[str, str], *, force: bool) -> Made | None:
    """What is in ``out``, if it was made of the very same; None if the way is free.

    Args:
        out: the folder.
        request: what is asked for now.
        inputs: ``identities`` of it.
        force: whether a replay text that is there may be replaced.

    Raises:
        UntaxError: something else is there.
    """
    manifest = read_manifest(out)
    if manifest is not None and manifest["what"] != "replay":
        raise UntaxError(f"This folder holds another artifact: {manifest['what']}.", where=out, fix="Name another one.")
    if force or (manifest is None and not (out / FILE_NAME).exists()):
        return None
    differing = "it has no manifest" if manifest is None else difference(manifest, out, request, inputs)
    if differing is None and manifest is not None:
        return Made(out / FILE_NAME, manifest["replay"])
    raise UntaxError(
        f"There is a replay text already, and not this one: {differing}.",
        where=out,
        fix="Replace it with --force, or name another folder.",
    )


def difference(manifest: dict[str, Any], out: Path, request: Request, inputs: dict[str, str]) -> str | None:
    """What of a replay text is not as it would be made now, or None."""
    changed = changed_outputs(out, manifest)
    if changed:
        return f"{', '.join(changed)} was changed or removed"
    if manifest.get("seed") != request.seed:
        return f"its seed is {manifest.get('seed')}"
    asked, now = manifest.get("request"), json.loads(json.dumps(request.record()))
    if not isinstance(asked, dict) or asked != now:
        keys = [key for key in now if not isinstance(asked, dict) or asked.get(key) != now[key]]
        return f"it was asked for otherwise ({', '.join(keys)})"
    recorded = manifest.get("inputs")
    if recorded != inputs:
        keys = [key for key in inputs if not isinstance(recorded, dict) or recorded.get(key) != inputs[key]]
        return f"{', '.join(keys)} was changed"
    return None
