"""A preset: a recipe that is checked in, and what its README says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from untax.recipes.presets.bases import Base
from untax.recipes.presets.corpora import Corpus, Text


@dataclass(frozen=True)
class Preset:
    """A checked-in recipe.

    Attributes:
        name: of its folder.
        title: of its README.
        rows: the paper's tables whose rows it has, such as ``DTM table 1``; "ours" for none.
        base: the base model.
        content: of ``untax.yaml``.
        sft: the instruction data.
        text: what it is, a paragraph each.
        preference: the preference pairs.
        replay: the pretraining text.
        differs: what differs from the paper, or what it leaves open, a sentence or two each.
    """

    name: str
    title: str
    rows: str
    base: Base
    content: dict[str, Any]
    sft: Corpus
    text: tuple[str, ...]
    preference: Corpus | None = None
    replay: Text | None = None
    differs: tuple[str, ...] = ()

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """Its instruction data and its pairs."""
        return tuple(corpus for corpus in (self.sft, self.preference) if corpus is not None)

    @property
    def note(self) -> str:
        """A line for the head of ``untax.yaml``."""
        return f"{self.title} ({self.rows})."
