"""Whether an adapter is added to the base that it was trained on."""

from __future__ import annotations

from pathlib import Path

from untax.adapters.stored import StoredAdapter
from untax.errors import UntaxError
from untax.manifest import digest_model, model_digest_is_known, read_manifest
from untax.merge.references import Source

FIX = "Name its own base in the YAML; if they are one and the same, say --allow-crimes."


def check_base(adapter: StoredAdapter, base: Source, *, read: bool = True, fix: str = FIX) -> None:
    """Compare the base that an adapter was trained on with the one it is added to.

    The adapter's manifest decides, by digest. Without one, adapter_config.json decides: by content when it names a
    folder that is there, else by name.

    Args:
        adapter: the adapter.
        base: the base it is added to.
        read: whether the base may be read for its digest; if not, and nobody knows it, the name decides.
        fix: what to do where they differ; by default, what a merge offers.

    Raises:
        UntaxError: they differ.
    """
    trained = str(adapter.config.get("base_model_name_or_path") or "")
    given = digest_model(base.path, base.revision) if read or model_digest_is_known(base.path) else None
    recorded = recorded_base(adapter.folder)
    if recorded is None and trained and Path(trained).is_dir() and (read or model_digest_is_known(trained)):
        recorded = digest_model(trained)
    if given is not None and recorded is not None and _comparable(recorded, given):
        same = recorded == given
    else:
        same = not trained or _last_part(trained) in (_last_part(base.path), _last_part(str(base.folder.resolve())))
    if not same:
        problem = f"The adapter was trained on another base ({trained or recorded}) than it is added to ({base.path})"
        raise UntaxError(
            f"{problem}: the name is the same, but not the content." if trained == base.path else f"{problem}.",
            where=adapter.folder,
            fix=fix,
        )


def has_digests(adapter: StoredAdapter, base: Source) -> bool:
    """Whether digests, and not names, say if a folder is the adapter's base."""
    recorded = recorded_base(adapter.folder)
    if recorded is not None:
        return recorded.startswith("hub:") != Path(base.path).is_dir()
    trained = str(adapter.config.get("base_model_name_or_path") or "")
    return bool(trained) and Path(trained).is_dir()


def recorded_base(folder: Path) -> str | None:
    """The digest or commit of the base that an adapter was trained on, by its manifest."""
    manifest = read_manifest(folder)
    recorded = (manifest or {}).get("inputs", {}).get("base")
    return recorded if isinstance(recorded, str) else None


def _comparable(one: str, other: str) -> bool:
    """Two contents can be compared, and two known commits; a commit with a content, or an unknown commit, cannot."""
    return one.startswith("hub:") == other.startswith("hub:") and not (one + other).count("@unknown")


def _last_part(path: str) -> str:
    """The name a path or hub id ends in; for a snapshot in the hub's cache, that of its repository."""
    parts = [part for part in Path(path).parts if part not in ("/", ".")]
    if len(parts) > 2 and parts[-2] == "snapshots":
        return parts[-3].rsplit("--", 1)[-1].lower()
    return parts[-1].lower() if parts else ""
