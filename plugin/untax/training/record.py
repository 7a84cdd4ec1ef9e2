"""What a training really did, gathered by untax's Axolotl plugins and written as the adapter's manifest."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from untax.data.corpus import identity
from untax.errors import UntaxError
from untax.manifest import digest_file, digest_model, write_manifest

DEFAULT_SEED = 42
ADAPTER_FILES = ("adapter_model*.safetensors", "adapter_model.safetensors.index.json", "adapter_config.json")
MODEL_FILES = ("model*.safetensors", "model.safetensors.index.json", "config.json")


@dataclass
class TrainingRecord:
    """The record of one training; each plugin adds a section.

    Attributes:
        started: ``time.time()`` when Axolotl registered the first plugin.
        sections: the manifest's sections by name.
        prepared: whether the prepared data's path was made the datasets' own.
        written: whether the manifest has been written.
    """

    started: float = field(default_factory=time.time)
    sections: dict[str, Any] = field(default_factory=dict)
    prepared: bool = False
    written: bool = False

    def write(self, cfg: Any) -> None:
        """Write ``untax.json`` into ``cfg.output_dir``, once.

        Raises:
            UntaxError: the training left no weights there.
        """
        if self.written:
            return
        folder = Path(cfg.output_dir)
        kind, patterns = ("adapter", ADAPTER_FILES) if cfg.adapter else ("model", MODEL_FILES)
        outputs = sorted({file.name for pattern in patterns for file in folder.glob(pattern)})
        if not any(name.endswith(".safetensors") for name in outputs):
            raise UntaxError(
                f"The training ended without {patterns[0]}.", where=folder, fix="Look at the training's log above."
            )
        write_manifest(
            folder,
            what=kind,
            outputs=outputs,
            started=self.started,
            config=file_identity(cfg.axolotl_config_path),
            inputs={"base": digest_model(cfg.base_model), **dataset_identities(cfg)},
            seed=effective_seed(cfg),
            **self.sections,
        )
        self.written = True


def file_identity(path: Any) -> dict[str, str] | None:
    """``{"path", "digest"}`` of a file, or None when there is none (a configuration given as a URL, say)."""
    if not path or not Path(path).is_file():
        return None
    return {"path": str(path), "digest": digest_file(Path(path))}


def dataset_identities(cfg: Any) -> dict[str, str]:
    """The digest of every local dataset file or folder; for any other dataset its revision."""
    return {
        f"{key}/{entry['path']}": identity(entry)
        for key in ("datasets", "test_datasets")
        for entry in cfg.get(key) or []
        if entry.get("path")
    }


def effective_seed(cfg: Any) -> int:
    """The configuration's seed; without one, what transformers trains with by default."""
    return DEFAULT_SEED if cfg.get("seed") is None else int(cfg["seed"])
