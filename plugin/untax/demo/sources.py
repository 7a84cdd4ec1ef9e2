"""The public data that the demo is cut from: origins and licences, reading, and what is left out."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from untax.errors import UntaxError

SEED = "untax-demo-1"
SPECIAL = ("<s>", "</s>", "<unk>")
LATIN = re.compile("[\n\t\x20-\x7e\xa0-\u024f\u2010-\u2026\u2030-\u205e]*")


class Source(NamedTuple):
    """Where rows come from, and how many to take at most for training."""

    origin: str
    licence: str
    rows: int = 0


FLAN = "https://github.com/google-research/FLAN (flan/v2/cot_data)"
INSTRUCTIONS = {
    "t0": Source("https://github.com/yizhongw/self-instruct (T0 templates)", "Apache-2.0", 460),
    "flan_cot_creak": Source(FLAN, "Apache-2.0", 310),
    "flan_cot_ecqa": Source(FLAN, "Apache-2.0", 310),
    "flan_cot_sensemaking": Source(FLAN, "Apache-2.0", 310),
    "flan_cot_strategyqa": Source(FLAN, "Apache-2.0", 255),
    "flan_cot_gsm8k": Source(FLAN, "Apache-2.0", 255),
    "flan_cot_qasc": Source(FLAN, "Apache-2.0", 400),
    "gpteacher_toolformer": Source("https://github.com/teknium1/GPTeacher", "MIT", 150),
    "gpteacher_roleplay": Source("https://github.com/teknium1/GPTeacher", "MIT", 400),
}
PREFERENCES = {
    "pandalm_human": Source("https://github.com/WeOpenML/PandaLM (human-labelled test set)", "Apache-2.0"),
    "llmbar_human": Source("https://github.com/princeton-nlp/LLMBar", "MIT"),
    "dpo_en_demo": Source("https://github.com/hiyouga/LLaMA-Factory (data/dpo_en_demo.json)", "Apache-2.0"),
}

# Stems of words that no bundled row may contain: coarse on purpose, there are rows enough.
OFFENSIVE = re.compile(
    r"\b(fuck|shit|bitch|cunt|whore|slut|bastard|asshole|nigg|fag|dyke|retard|tranny|rape|rapist|molest|porn|nude|naked|"
    r"sex|erotic|orgasm|masturbat|penis|vagina|breast|genital|prostitut|incest|pedophil|suicid|kill yourself|genocid|"
    r"holocaust|nazi|hitler|terroris|jihad|lynch|slave|racis|racial|behead|tortur|murder|massacre|cocaine|heroin|"
    r"meth\b|condom|aborti|jew|muslim|islam|gay|lesbian|homosexual|transgender)",
    re.IGNORECASE,
)


def read(path: Path, known: dict[str, Source]) -> list[dict[str, Any]]:
    """The rows of a gzipped JSON Lines file whose source is ``known``.

    Raises:
        UntaxError: the file is not there.
    """
    if not path.is_file():
        raise UntaxError("The source data is missing.", where=path, fix="Name its folder with --source.")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = (json.loads(line) for line in lines)
        return [row for row in rows if row["source"] in known]


def usable(*texts: str) -> bool:
    """Whether texts are in Latin script, hold no special token and nothing offensive."""
    whole = "\n".join(texts)
    return bool(LATIN.fullmatch(whole)) and not any(token in whole for token in SPECIAL) and not OFFENSIVE.search(whole)


def key(text: str) -> str:
    """A text without case and spacing: prompts with the same key are the same prompt."""
    return " ".join(text.lower().split())


def order(*parts: str) -> str:
    """A keyed hash to sort by: a shuffle that needs no state and never changes."""
    return hashlib.sha256("\x00".join((SEED, *parts)).encode()).hexdigest()
