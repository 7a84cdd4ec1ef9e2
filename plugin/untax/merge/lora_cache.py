"""Merged copies of base+adapter for mergekit, kept only where the user asks, and reused only for the same content.

mergekit names a copy after the paths alone: by itself it would use the old copy of an adapter that was trained anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax.adapters.stored import ADAPTER_FILES
from untax.errors import UntaxError
from untax.manifest import digest_files, digest_json, digest_model, package_versions
from untax.merge.place import output_folder
from untax.merge.references import Source

if TYPE_CHECKING:
    from mergekit.common import ModelReference
    from mergekit.options import MergeOptions

# mergekit seeds before the copies are made and PEFT draws random numbers while it makes them, so a copy that is reused
# would change which elements these methods drop.
RANDOM_METHODS = ("dare_linear", "dare_ties", "della", "della_linear")


def link_kept_copies(cache: Path, references: list[ModelReference], options: MergeOptions) -> None:
    """Give ``cache`` a link to the copy of each base+adapter in --lora-merge-cache; those that are missing are made."""
    assert options.lora_merge_cache is not None
    for reference in references:
        if reference.lora is not None:
            entry = Path(options.lora_merge_cache) / f"untax-{_key(reference, options)[:32]}"
            if not entry.is_dir():
                _make(entry, reference, options)
            copy = next(entry.iterdir())
            (cache / copy.name).symlink_to(copy.resolve(), target_is_directory=True)


def _make(entry: Path, reference: ModelReference, options: MergeOptions) -> None:
    try:
        with output_folder(entry, replace=False) as part:
            reference.merged(
                cache_dir=str(part),
                trust_remote_code=options.trust_remote_code,
                lora_merge_dtype=options.lora_merge_dtype,
            )
    except UntaxError:
        if not entry.is_dir():  # else another merge was quicker with the same copy
            raise


def _key(reference: ModelReference, options: MergeOptions) -> str:
    base, adapter = _source(reference.model), _source(reference.lora)
    versions = package_versions()
    return digest_json(
        {
            "name": str(reference),  # mergekit names the copy after it
            "base": digest_model(base.folder),
            "adapter": digest_files(adapter.folder, ADAPTER_FILES),
            "dtype": options.lora_merge_dtype,
            "versions": {name: versions.get(name) for name in ("mergekit", "peft", "transformers", "torch")},
        }
    )


def _source(path: Any) -> Source:
    return Source(path.path, path.revision)
