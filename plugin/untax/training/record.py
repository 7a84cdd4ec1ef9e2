"""What a training really did, gathered by untax's Axolotl plugins and written as the adapter's manifest."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from untax.data.corpus import entries_digest
from untax.data.streamed import pretraining_entries
from untax.errors import UntaxError
from untax.manifest import digest_file, digest_model, write_manifest
from untax.training.asked import COMMAND_LINE, REPORTING, Asked, plain
from untax.training.inputs import BASE, named_inputs
from untax.training.started import claim
from untax.training.weights import measured

DEFAULT_SEED = 42
ADAPTER_FILES = ("adapter_model*.safetensors", "adapter_model.safetensors.index.json", "adapter_config.json")
MODEL_FILES = ("model*.safetensors", "model.safetensors.index.json", "config.json")


@dataclass
class TrainingRecord:
    """The record of one training; each plugin adds a section.

    Attributes:
        started: ``time.time()`` when Axolotl registered the plugins.
        config: path and digest of the YAML, as it was then.
        keys: its content, as it was then; options that were typed are laid over it.
        inputs: digests of the datasets and files as they were then, under the names that the YAML has for them.
        entries: the digest of the YAML's dataset entries.
        trains: whether a training was asked for, and not a merge or an inference, which load the model too.
        sections: the manifest's sections by name; a function is asked for its section when the manifest is written.
        prepared: whether the prepared data's path was made the datasets' own.
        claimed: whether ``output_dir`` was claimed, which also adds a local base model to ``inputs``.
        written: whether the manifest has been written.
    """

    started: float = field(default_factory=time.time)
    config: dict[str, str] | None = None
    keys: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    entries: str = ""
    trains: bool = True
    sections: dict[str, Any] = field(default_factory=dict)
    prepared: bool = False
    claimed: bool = False
    written: bool = False

    @classmethod
    def begin(cls, cfg: Mapping[str, Any], *, digests: bool) -> TrainingRecord:
        """The record of a training that begins, from the configuration as it was written.

        What is edited from now on is not what the training was started with, so nothing is digested later.

        Args:
            cfg: the configuration before Axolotl's validation and before any rewriting.
            digests: whether to read the files; only the process that writes the manifest needs to.
        """
        return cls(
            config=file_identity(cfg.get("axolotl_config_path")) if digests else None,
            keys=_content(cfg),
            inputs=named_inputs(cfg) if digests else {},
            entries=entries_digest(pretraining_entries(cfg) or cfg.get("datasets") or []),
            trains=not (cfg.get("inference") or cfg.get("merge_lora")),
        )

    def claim(self, cfg: Any) -> None:
        """Claim ``cfg.output_dir`` for this training, once, and note what a local base model is before it is loaded.

        Raises:
            UntaxError: another process trains into it, or the training would resume what another recipe began.
        """
        if self.claimed:
            return
        if Path(str(cfg.base_model)).is_dir():
            self.inputs = {BASE: digest_model(cfg.base_model), **self.inputs}
        claim(
            Path(cfg.output_dir),
            config=self.config["digest"] if self.config else None,
            asked=Asked(self.keys, self.inputs, self._rows()),
            resumes=bool(cfg.auto_resume_from_checkpoints) and not cfg.resume_from_checkpoint,
        )
        self.claimed = True

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
            config={**(self.config or {}), "keys": self.keys},
            # The commit of a model of the hub is known once it has been downloaded.
            inputs=self.inputs
            if BASE in self.inputs
            else {BASE: digest_model(cfg.base_model, cfg.revision_of_model), **self.inputs},
            seed=effective_seed(cfg),
            **{name: section() if callable(section) else section for name, section in self.sections.items()},
            weights=measured([folder / name for name in outputs if name.endswith(".safetensors")]),
        )
        self.written = True

    def _rows(self) -> Any:
        """What the cluster of a dispersed training holds, if it is known before the training."""
        section = self.sections.get("disperse")
        return section.get("trained_on") if isinstance(section, Mapping) else None


def file_identity(path: Any) -> dict[str, str] | None:
    """``{"path", "digest"}`` of a file, or None when there is none (a configuration given as a URL, say)."""
    if not path or not Path(path).is_file():
        return None
    return {"path": str(path), "digest": digest_file(Path(path))}


def _content(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as JSON, without what Axolotl adds to it, and without where it is reported to: the keys and
    addresses of such services are secrets, and manifests are published.
    """
    left_out = {"axolotl_config_path", *COMMAND_LINE, *REPORTING} - {"logging_steps"}
    return {key: value for key, value in plain(dict(cfg)).items() if key not in left_out}


def effective_seed(cfg: Any) -> int:
    """The configuration's seed; without one, what transformers trains with by default."""
    return DEFAULT_SEED if cfg.get("seed") is None else int(cfg["seed"])
