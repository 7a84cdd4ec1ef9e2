"""What lies beside the weights: configuration, tokenizer, card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja"),
    "chat_template.json",
)
_OTHER_FILES = (
    *("generation_config.json", "preprocessor_config.json", "processor_config.json", "image_processor_config.json"),
    *("video_preprocessor_config.json", "feature_extractor_config.json"),
)
_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def copy_side_files(base: Path, out: Path, *, dtype: str | None, tokenizer: bool) -> None:
    """Give a merged model its base's configuration and, if asked for, tokenizer.

    Args:
        base: the base's folder.
        out: the folder of the merged model.
        dtype: of its weights, as safetensors spells it; None: as the base's.
        tokenizer: whether to copy it.
    """
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if dtype is not None:
        _set_dtype(config, _NAMES[dtype])
    (out / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name in (*_OTHER_FILES, *(TOKENIZER_FILES if tokenizer else ())):
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)


def _set_dtype(config: dict[str, Any], name: str) -> None:
    """Under both its names, old and new, and in the configurations of a model's parts."""
    key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    config[key] = name
    for part in config.values():
        if isinstance(part, dict) and {"dtype", "torch_dtype"} & part.keys():
            _set_dtype(part, name)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer in it."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"))
