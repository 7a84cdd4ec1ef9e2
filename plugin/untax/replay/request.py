"""What is asked of ``untax replay``: all that decides the rows it writes, and nothing else."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from untax.data.completion import TOKENIZER_KEYS
from untax.data.corpus import entries_digest
from untax.data.text_files import COLUMN
from untax.errors import UntaxError

SEQUENCE_LEN = 1024
"""Of Disperse-Then-Merge's trainings (appendix A.1), where no YAML and no option says another."""
FILE_NAME = "replay.jsonl"
CFG_KEYS = (*TOKENIZER_KEYS, "min_sample_len")


@dataclass(frozen=True)
class TextSource:
    """Where pretraining texts are.

    Attributes:
        path: a file, a folder with a dataset, or the id of a dataset on the hub.
        split: of a dataset, ``train`` by default.
        name: of a dataset with several configurations.
        column: of rows, the one with the text.
        separator: of plain text, what stands between two texts.
        revision: of a dataset on the hub.
    """

    path: str
    split: str | None = None
    name: str | None = None
    column: str = COLUMN
    separator: str | None = None
    revision: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is a file of this machine."""
        return Path(self.path).is_file()


@dataclass(frozen=True)
class Like:
    """What the Axolotl YAML of a training says of its rows.

    Attributes:
        cfg: those of its keys that decide which tokens a text has, and how few are too few.
        sequence_len: the most tokens of a row, or None if it says nothing.
        entries: the dataset entries of its instruction data: all but the replay text itself.
        first_turn: whether rows are cut to their first turns, and those without one are left out.
        seed: by which entries with ``shards`` are shuffled.
        token: Axolotl's ``hf_use_auth_token``.
    """

    cfg: dict[str, Any]
    sequence_len: int | None
    entries: tuple[dict[str, Any], ...]
    first_turn: bool = False
    seed: int | None = None
    token: Any = None

    def record(self) -> dict[str, Any]:
        """As JSON: which rows are counted."""
        shuffled = any(entry.get("shards") for entry in self.entries)
        return {
            "entries": entries_digest(self.entries),
            "first_turn": self.first_turn,
            **({"seed": self.seed} if shuffled else {}),
        }


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        sources: where the texts are.
        cfg: Axolotl's keys that decide which tokens a text has, and how few are too few; ``base_model`` among them.
        sequence_len: the most tokens of a training row, special ones included.
        rows: how many rows, if that is said outright.
        like: else the training whose instruction rows are counted.
        ratio: rows, or tokens, of replay text for each one of the instruction data.
        by: ``rows`` or ``tokens``: what is counted.
        seed: of which texts are taken.
    """

    sources: tuple[TextSource, ...]
    cfg: dict[str, Any]
    sequence_len: int = SEQUENCE_LEN
    rows: int | None = None
    like: Like | None = None
    ratio: float = 1.0
    by: str = "rows"
    seed: int = 42

    @property
    def tokenizer(self) -> str:
        """The folder or hub id that the tokenizer is of."""
        return str(self.cfg.get("tokenizer_config") or self.cfg["base_model"])

    @property
    def shortest(self) -> int:
        """The fewest tokens of a row that Axolotl trains on."""
        return int(self.cfg.get("min_sample_len") or 2)

    def record(self) -> dict[str, Any]:
        """As JSON, for the manifest: equal for requests of equal rows, as far as their inputs are the same."""
        sources = [
            {key: value for key, value in asdict(source).items() if value is not None} for source in self.sources
        ]
        wanted: dict[str, Any] = {"rows": self.rows}
        if self.rows is None and self.like is not None:
            wanted = {"ratio": self.ratio, "by": self.by, "instruction_data": self.like.record()}
        return {"texts": sources, "cfg": self.cfg, "sequence_len": self.sequence_len, **wanted}


def read_like(content: Mapping[str, Any], folder: Path, out: Path) -> Like:
    """What the YAML of a training says.

    Args:
        content: the YAML.
        folder: where its paths start.
        out: the folder of the replay text, which is no instruction data.

    Raises:
        UntaxError: ``datasets`` is no list, or a number is none.
    """
    _check_types(content)
    entries = [dict(entry) for entry in content.get("datasets") or [] if isinstance(entry, Mapping)]
    made = {os.path.realpath(out), os.path.realpath(out / FILE_NAME)}
    return Like(
        {key: content[key] for key in CFG_KEYS if content.get(key) is not None},
        content.get("sequence_len"),
        tuple(entry for entry in entries if os.path.realpath(folder / str(entry.get("path"))) not in made),
        bool(content.get("disperse_first_turn")),
        content.get("seed"),
        content.get("hf_use_auth_token"),
    )


def _check_types(content: Mapping[str, Any]) -> None:
    numbers = ("sequence_len", "min_sample_len", "seed")
    wrong = {key: "is a whole number" for key in numbers if type(content.get(key)) not in (int, type(None))}
    if content.get("datasets") and not isinstance(content["datasets"], list):
        wrong["datasets"] = "is a list"
    if wrong:
        problems = "; ".join(f"{key} {what}, not {content[key]!r}" for key, what in wrong.items())
        raise UntaxError(f"Of the training's YAML {problems}.", where="the YAML of --like", fix="Correct these keys.")


def make_request(
    sources: tuple[TextSource, ...],
    *,
    like: Like | None,
    base: str | None,
    sequence_len: int | None,
    rows: int | None,
    ratio: float | None,
    by: str | None,
    seed: int,
    trust_remote_code: bool,
    where: object,
) -> Request:
    """A request from what was typed and what the YAML says; what was typed goes first.

    Raises:
        UntaxError: something is missing, or two things that were said exclude each other.
    """
    keys, length = laid_over(like, base=base, sequence_len=sequence_len, trust_remote_code=trust_remote_code)
    if not keys.get("base_model"):
        raise UntaxError(
            "The model whose tokenizer counts is not named.", where=where, fix="Name it: --base B, or --like CONFIG."
        )
    if rows is None and like is None:
        raise UntaxError(
            "How many rows to write is not said.",
            where=where,
            fix="Say --rows N, or name the YAML of the training that mixes them in: --like CONFIG --ratio 1.0.",
        )
    if ratio is not None and not math.isfinite(ratio):
        raise UntaxError(f"A ratio of {ratio} says nothing.", where="--ratio", fix="Give a number, such as 1.0.")
    if rows is not None and (ratio is not None or by == "tokens"):
        raise UntaxError("--rows says how many rows, and so does --ratio or --by.", where=where, fix="Say one of them.")
    if rows is None and like is not None and not like.entries:
        raise UntaxError(
            "This YAML has no instruction data under datasets.", where=where, fix="Add the entry, or say --rows N."
        )
    return Request(sources, keys, length, rows, like, 1.0 if ratio is None else ratio, by or "rows", seed)


def laid_over(
    like: Like | None, *, base: str | None, sequence_len: int | None, trust_remote_code: bool
) -> tuple[dict[str, Any], int]:
    """Axolotl's keys that count, and the length of rows: what was typed, laid over what the YAML says."""
    typed = {"base_model": base, "trust_remote_code": trust_remote_code or None}
    keys = {**(like.cfg if like else {}), **{key: value for key, value in typed.items() if value is not None}}
    return keys, int(sequence_len or (like and like.sequence_len) or SEQUENCE_LEN)


def unchanged(
    manifest: Mapping[str, Any], like: Like, *, base: str | None, sequence_len: int | None, trust_remote_code: bool
) -> bool:
    """Whether a YAML says what it said when a replay text was made like it, by the same command line.

    Args:
        manifest: of the replay text.
        like: what the YAML says now.
        base: what was typed, and so on.
        sequence_len: likewise.
        trust_remote_code: likewise.
    """
    asked = manifest.get("request") or {}
    keys, length = laid_over(like, base=base, sequence_len=sequence_len, trust_remote_code=trust_remote_code)
    counted = asked.get("instruction_data", like.record())
    now = json.loads(json.dumps([keys, length, like.record()]))
    return [asked.get("cfg"), asked.get("sequence_len"), counted] == now


def tokenizer_of(manifest: Mapping[str, Any]) -> str | None:
    """The folder or hub id of the tokenizer that a replay text was cut by."""
    keys = (manifest.get("request") or {}).get("cfg") or {}
    return keys.get("tokenizer_config") or keys.get("base_model")
