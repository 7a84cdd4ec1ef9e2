"""One way in which a merge comes about: streamed, by mergekit, or into an adapter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from untax.merge.config_file import MergeConfig
from untax.merge.options import Options

Advance = Callable[[int], object]


@dataclass(frozen=True)
class Made:
    """What was written.

    Attributes:
        digests: for each output, those (SHA-256) of its large files, by name.
        facts: what the manifest says of the merge.
        notes: sentences for the user.
    """

    digests: list[dict[str, str]]
    facts: dict[str, Any]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Kind(ABC):
    """A way to merge.

    Attributes:
        config: the YAML.
        options: mergekit's.
        what: what comes out: ``model`` or ``adapter``.
        engine: its name in the manifest.
        shows_progress: whether ``write`` takes long and says how far it is.
        defers_digests: whether large files of the base are read for their digests while it is merged.
    """

    config: MergeConfig
    options: Options
    what = "model"
    engine = ""
    defers_digests = False
    shows_progress = True

    @abstractmethod
    def bytes_needed(self) -> int:
        """Of disk, for one output."""

    @abstractmethod
    def describe(self) -> Iterator[str]:
        """Sentences for a dry run."""

    @abstractmethod
    def write(self, parts: Sequence[Path], scales: Sequence[float], names: Sequence[str], advance: Advance) -> Made:
        """Write all but card and manifest.

        Args:
            parts: an existing empty folder for each output.
            scales: what the merged delta is multiplied by in each.
            names: of the folders that these will become.
            advance: called with the bytes that were written to each.

        Raises:
            UntaxError: it cannot be made.
        """

    def notes(self) -> list[str]:
        """Sentences for the user before it begins."""
        return []

    def identity(self) -> dict[str, Any]:
        """What decides the output beside YAML, options and inputs."""
        return {"engine": self.engine}

    def card(self, facts: Mapping[str, Any]) -> dict[str, str]:
        """Lines for the model card, by their titles."""
        return {"Method": f"`{facts['method']}`"}
