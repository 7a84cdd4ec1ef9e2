"""A merge that mergekit itself makes, with adapters read as deltas."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from untax.adapters.base import StoredModel
from untax.errors import UntaxError
from untax.merge import checks
from untax.merge.kind import Advance, Kind, Made
from untax.merge.plan import unknown_keys
from untax.merge.shards import DTYPES, WIDTHS

if TYPE_CHECKING:
    from mergekit.config import MergeConfiguration

ASKED_FOR = "--engine mergekit"
_SCRATCH = ".scratch"


@dataclass(frozen=True)
class MergekitMerge(Kind):
    """See ``untax.merge.mergekit_yaml``.

    Attributes:
        reason: why it is not streamed.
    """

    reason: str = ""
    engine = "mergekit"
    shows_progress = False

    @cached_property
    def validated(self) -> MergeConfiguration:
        """The configuration as mergekit understands it."""
        from untax.merge import mergekit_yaml

        mergekit_yaml.import_quietly()
        return mergekit_yaml.read_config(self.config.raw, where=self.config.path)

    def bytes_needed(self) -> int:
        """The largest input's tensors in the output's dtype."""
        wanted = self.config.raw.get("out_dtype") or self.config.raw.get("dtype")
        width = WIDTHS.get(DTYPES.get(str(wanted), ""))
        return max(_size(StoredModel(reference.base.folder), width) for reference in self.config.references)

    def notes(self) -> list[str]:
        """Why mergekit; and parameters that it ignores.

        Raises:
            UntaxError: mergekit refuses the configuration.
        """
        from untax.merge.parameters import check_parameters

        if self.options.on_gpu:
            _check_gpu(str(self.options["device"] or "cuda"))
        found = [*unknown_keys(self.config), *check_parameters(self.validated, where=self.config.path)]
        return found if self.reason == ASKED_FOR else [f"mergekit itself merges, because of {self.reason}.", *found]

    def describe(self) -> Iterator[str]:
        """The reason."""
        method, count = self.config.raw.get("merge_method"), len(self.config.references)
        yield f"{method} of {count} models by mergekit itself, because of {self.reason}."

    def write(self, parts: Sequence[Path], scales: Sequence[float], names: Sequence[str], advance: Advance) -> Made:
        """One merge for each scale."""
        from untax.merge import mergekit_yaml

        options = mergekit_yaml.read_options([*self.options.given, f"--random-seed={self.options.seed}"])
        left_out: list[str] = []
        for part, scale, name in zip(parts, scales, names, strict=True):
            merged = part / _SCRATCH / (name or "merge")
            merged.mkdir(parents=True)
            left_out = mergekit_yaml.run(
                self.validated, options, self.config.text, merged, where=self.config.path, scale=scale
            )
            _move_up(merged, part)
            checks.check_model(part)
            advance(self.bytes_needed())
        facts = {"method": self.config.raw["merge_method"], "reason": self.reason, "left_out": left_out}
        return Made([{} for _ in parts], facts, _about(left_out))


def _check_gpu(device: str) -> None:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UntaxError("There is no GPU that torch can use.", where="--cuda or --device", fix="Leave it out.")


def _move_up(merged: Path, part: Path) -> None:
    mode = (merged / "config.json").stat().st_mode
    for file in merged.iterdir():
        file.chmod(mode)  # safetensors are written for the owner only
        file.rename(part / file.name)
    shutil.rmtree(part / _SCRATCH)


def _about(left_out: Sequence[str]) -> list[str]:
    count = len(left_out)
    return [f"mergekit left out {count} tensors that it does not know: {left_out[0]} ..."] if left_out else []


def _size(model: StoredModel, width: int | None) -> int:
    tensors = model.tensors.values()
    if width is None:
        return sum(tensor.stop - tensor.start for tensor in tensors)
    return width * sum(tensor.elements for tensor in tensors)
