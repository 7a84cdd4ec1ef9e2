"""What the YAML of a training names on this machine, and the digests of it."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from untax.data.corpus import identity, is_pattern
from untax.data.streamed import pretraining_entries
from untax.manifest import digest_file, digest_files, digest_model

BASE = "base"
"""What a manifest calls the base model; everything else it calls as the YAML does."""
DATA_KEYS = ("datasets", "test_datasets", "pretraining_dataset")
FILE_KEYS = ("delta_ewc_fisher",)
"""Keys of an Axolotl configuration whose value is a file that decides the result, and that must be there."""
TOKENIZER_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model"),
    *("chat_template*", "*processor_config.json", "*.py"),
)
"""What makes text into tokens, and code that comes with a model."""
LONGEST_PATH = 4096


def _folder_or_file(*patterns: str) -> Callable[[Path], str]:
    return lambda path: digest_file(path) if path.is_file() else digest_files(path, patterns)


PATH_KEYS: dict[str, Callable[[Path], str]] = {
    "base_model_config": _folder_or_file("config.json"),
    "cls_model_config": _folder_or_file("config.json"),
    "tokenizer_config": _folder_or_file(*TOKENIZER_FILES),
    "processor_config": _folder_or_file(*TOKENIZER_FILES),
    "lora_model_dir": _folder_or_file("adapter_model*.safetensors", "adapter_config.json"),
    "resume_from_checkpoint": _folder_or_file("*.safetensors", "trainer_state.json"),
    **dict.fromkeys((*FILE_KEYS, "chat_template_jinja", "deepspeed"), digest_file),
}
"""Other keys whose value may be a path, and the digest of what lies there."""


def named_inputs(cfg: Mapping[str, Any], folder: Path = Path()) -> dict[str, str]:
    """The digests of what a configuration names besides its base model's weights, by the names that a manifest uses.

    A dataset or a tokenizer from elsewhere has its revision, or ``unknown``; files that are not there are left out.

    Args:
        cfg: the configuration, as it was written.
        folder: where its paths start.
    """
    files = {key: digest for key in PATH_KEYS if (digest := path_key_digest(key, cfg.get(key), folder))}
    return {**files, **tokenizer_of_base(cfg, folder), **dataset_identities(cfg, folder)}


def path_key_digest(key: str, value: Any, folder: Path) -> str | None:
    """The digest of the file or folder that a key of ``PATH_KEYS`` names; None if it names none that is here."""
    path = local_path(value, folder)
    digest = PATH_KEYS[key]
    if path is None or (digest is digest_file and not path.is_file()):
        return None
    return digest(path)


def tokenizer_of_base(cfg: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """``{"tokenizer": digest}`` of a local base model: its weights' digest does not tell."""
    path = local_path(cfg.get("base_model"), folder)
    if path is None or not path.is_dir() or cfg.get("tokenizer_config"):
        return {}
    return {"tokenizer": digest_files(path, TOKENIZER_FILES)}


def base_digest(cfg: Mapping[str, Any], folder: Path) -> str | None:
    """The digest of a base model that is a folder of this machine."""
    path = local_path(cfg.get("base_model"), folder)
    return digest_model(path) if path is not None and path.is_dir() else None


def dataset_identities(cfg: Mapping[str, Any], folder: Path = Path()) -> dict[str, str]:
    """The digest of every local dataset file or folder; for any other dataset its revision."""
    return {f"{key}/{entry_name(entry)}": identity(placed(entry, folder)) for key, entry in entries_of(cfg)}


def entries_of(cfg: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every dataset entry with a path, and the key that it stands under."""
    for key in DATA_KEYS:
        listed = pretraining_entries(cfg) if key == "pretraining_dataset" else cfg.get(key)
        for entry in listed if isinstance(listed, list) else []:
            if isinstance(entry, Mapping) and entry.get("path"):
                yield key, entry


def entry_name(entry: Mapping[str, Any]) -> str:
    """An entry's path; with ``data_files`` these as well, as for ``path: json`` they are the dataset."""
    files = _texts(entry.get("data_files"))
    return str(entry.get("path")) + (f":{','.join(files)}" if files else "")


def placed(entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """An entry whose paths, as far as they are here, start at the present folder."""
    names: dict[str, Any] = {"path": _placed(entry.get("path"), folder), "revision": entry.get("revision")}
    return {**names, "data_files": [_placed(name, folder) for name in _texts(entry.get("data_files"))]}


def local_path(value: Any, folder: Path) -> Path | None:
    """The path that a value names, if something lies there; templates and the like are texts too, and no paths."""
    if not isinstance(value, str) or not value or len(value) > LONGEST_PATH or "\n" in value or "\0" in value:
        return None
    path = folder / Path(value)
    try:
        return path if path.exists() else None
    except OSError:  # A part of it is longer than a name may be.
        return None


def _placed(name: Any, folder: Path) -> str:
    found = local_path(name, folder)
    if found is None and is_pattern(str(name)) and not Path(str(name)).is_absolute():
        return f"{glob.escape(str(folder))}/{name}"
    return str(found or name)


def _texts(value: Any) -> list[str]:
    """The texts in a value of ``data_files``: one, a list, or a mapping of splits to either."""
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list | tuple):
        return [str(item) for item in value]
    return [str(value)] if value else []
