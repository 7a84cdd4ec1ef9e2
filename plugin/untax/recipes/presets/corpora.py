"""The corpora of the presets: where they are, how many rows they have, and how long those are by a stated estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WORDS = 1.33
"""Tokens per word of English, about; ours."""
BYTES = 4.4
"""Bytes per token of a data set as its card counts them; ours: Tulu 3's 2.9 GB are 670 million tokens of Llama 3."""
PROMPT = 36
"""Tokens of Alpaca's prompt around an instruction without an input."""
LIMIT = 1024
"""Tokens of a row at most, in Disperse-Then-Merge (table 10)."""


@dataclass(frozen=True)
class Corpus:
    """A data set.

    Attributes:
        name: as texts call it.
        entries: of Axolotl's ``datasets``.
        rows: how many it has.
        tokens: mean tokens of a row, of both answers together for pairs; an estimate.
        counted: who counted the rows.
        estimated: what the tokens are estimated from.
        first_turn: its dialogues are cut to the first turn (DTM A.1).
        notes: what to know before it is used.
    """

    name: str
    entries: tuple[dict[str, Any], ...]
    rows: int
    tokens: float
    counted: str
    estimated: str
    first_turn: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Text:
    """Pretraining text, of which a sample is taken.

    Attributes:
        name: as texts call it.
        entry: of ``replay``.
        notes: what to know before it is used.
    """

    name: str
    entry: dict[str, Any]
    notes: tuple[str, ...] = ()


def _entry(path: str, kind: Any, **keys: Any) -> dict[str, Any]:
    return {"path": path, **keys, "type": kind}


def _of_words(*subsets: tuple[int, float, float]) -> float:
    """Mean tokens, from the rows of each subset and its mean words of instruction and of response."""
    tokens = [(rows, min(WORDS * (asked + said) + PROMPT, LIMIT)) for rows, asked, said in subsets]
    return sum(rows * each for rows, each in tokens) / sum(rows for rows, _ in tokens)


# Disperse-Then-Merge

TULU2 = Corpus(
    "Tulu-V2-mix",
    (_entry("allenai/tulu-v2-sft-mixture", "alpaca", split="train"),),
    326_154,
    _of_words(
        (49_123, 327.85, 15.25),
        (49_747, 151.67, 32.77),
        (7_331, 20.26, 149.39),
        (111_912, 81.09, 197.71),
        (19_906, 16.41, 107.50),
        (20_016, 20.81, 44.94),
        (1_018, 39.40, 430.17),
        (29_810, 98.42, 276.50),
        (29_683, 154.57, 110.64),
        (7_468, 1118.43, 45.03),
        (140, 5.29, 69.71),
    ),
    "DTM A.1 and the data set's card",
    "DTM table 8's words per row",
    first_turn=True,
)
ALPACA_GPT4 = Corpus(
    "Alpaca-GPT4",
    (_entry("vicgalle/alpaca-gpt4", "alpaca", split="train"),),
    52_002,
    _of_words((1, 16.41, 107.50)),
    "DTM section 6",
    "DTM table 8's words per row (of the 19,906 that are in Tulu-V2-mix)",
    notes=(
        "The authors' data is a file on GitHub (Instruction-Tuning-with-GPT-4/GPT-4-LLM); the data set named here is "
        "the copy of it that is used most.",
    ),
)
CODE_ALPACA = Corpus(
    "Code-Alpaca",
    (_entry("sahil2801/CodeAlpaca-20k", "alpaca", split="train"),),
    20_022,
    _of_words((1, 20.81, 44.94)),
    "DTM section 6",
    "DTM table 8's words per row",
    notes=("The data set is the author's own.",),
)
BAIZE = Corpus(
    "Baize",
    (_entry("./data/baize.jsonl", "alpaca"),),
    158_183,
    _of_words((46_863, 12.41, 36.13), (54_282, 15.43, 31.91), (57_038, 19.18, 26.79)),
    "DTM section 6: medical, quora and stackoverflow",
    "DTM table 9's words per row",
    notes=(
        "The authors' data is on GitHub only (project-baize/baize-chatbot, folder data); copies on the hub, such as "
        "taskydata/baize_chatbot, have the same files. A dialogue there is one text with [|Human|] and [|AI|] in it, "
        "which no type of Axolotl's reads: `rows.py` beside this file writes its first turns as rows, once:",
        "    python recipes/dtm-llama2-7b-baize/rows.py medical_chat_data.json quora_chat_data.json \\\n"
        "        stackoverflow_chat_data.json -o run/data/baize.jsonl",
        "It leaves out dialogues without a first answer and counts them.",
    ),
)
ALPACA_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_CAMEL_TYPE = {"field_instruction": "message_1", "field_output": "message_2", "no_input_format": ALPACA_PROMPT}
CAMEL = Corpus(
    "Camel",
    tuple(
        _entry(f"camel-ai/{subject}", dict(_CAMEL_TYPE), split="train")
        for subject in ("math", "physics", "chemistry", "biology")
    ),
    109_740,
    _of_words((49_765, 45.59, 223.70), (20_000, 36.47, 357.60), (19_983, 30.94, 309.20), (19_992, 23.89, 407.51)),
    "DTM section 6: math, physics, chemistry and biology",
    "DTM table 9's words per row",
    notes=(
        "The four data sets are the authors' own. Each is one zip archive of small JSON files, which loads slowly, "
        "and may ask you to accept its terms on the hub. `checkai/oaCamel` is someone's copy of all four in one "
        "Parquet file, with the columns INSTRUCTION and RESPONSE (`type: oasst` reads them with another prompt than "
        "the paper's).",
    ),
)
EVOL_INSTRUCT = Corpus(
    "Evol-Instruct-70k",
    (_entry("WizardLMTeam/WizardLM_evol_instruct_70k", "alpaca", split="train"),),
    70_000,
    _of_words((1, 77.82, 206.55)),
    "DTM section 6",
    "DTM table 9's words per row",
    notes=("The data set is the authors' own; it was WizardLM/WizardLM_evol_instruct_70k before.",),
)
LIMA = Corpus(
    "LIMA",
    (_entry("habanoz/lima-chat-format", "alpaca", split="train"),),
    1_030,
    _of_words((1, 39.40, 430.17)),
    "the data set's card; DTM section 6 says 1,000",
    "DTM table 8's words per row",
    first_turn=True,
    notes=(
        "The authors' data set, GAIR/lima, is gated and made by a script, which `datasets` runs no longer; the one "
        "named here is someone's copy of it as dialogues.",
        "Table 10 warms up for 100 steps. A sub-model has about 50 here (258 rows, 3 epochs, 16 a step), so that its "
        "learning rate only rises, to half of table 10's; the paper does not say that it warmed up otherwise. Lower "
        "`warmup_steps` in `untax.yaml` if you do not want that.",
    ),
)
SLIMPAJAMA = Text(
    "SlimPajama",
    {"path": "DKYoon/SlimPajama-6B", "split": "train", "field": "text"},
    (
        "The paper replays RedPajama. Its data sets on the hub are made by scripts, which `datasets` runs no longer; "
        "the one named here is someone's sample (Parquet) of SlimPajama, which is RedPajama without duplicates.",
    ),
)

# PAFT

CHAT = "chat_template"
PAIRS = "chat_template.argilla_chat"
ULTRACHAT = Corpus(
    "UltraChat",
    (_entry("HuggingFaceH4/ultrachat_200k", CHAT, split="train_sft", field_messages="messages"),),
    207_865,
    2_609_053_656 / 2 / 207_865 / BYTES,
    "the data set's card",
    "its bytes",
)
ULTRAFEEDBACK = Corpus(
    "UltraFeedback",
    (_entry("HuggingFaceH4/ultrafeedback_binarized", PAIRS, split="train_prefs"),),
    61_135,
    284_937_773 / 60_917 / BYTES,
    "the data set's card",
    "the bytes of its cleaned version",
)

# Today's

SMOL_SMOLTALK = Corpus(
    "smol-smoltalk",
    (_entry("HuggingFaceTB/smol-smoltalk", CHAT, split="train", field_messages="messages"),),
    460_341,
    1_811_694_119 / 460_341 / BYTES,
    "the data set's card",
    "its bytes",
)
SMOLTALK = Corpus(
    "smoltalk",
    (_entry("HuggingFaceTB/smoltalk", CHAT, name="all", split="train", field_messages="messages"),),
    1_043_917,
    1_811_694_119 / 460_341 / BYTES,
    "users of the data set",
    "the bytes per row of smol-smoltalk, whose dialogues are shorter",
)
TULU3 = Corpus(
    "Tulu 3 SFT mixture",
    (_entry("allenai/tulu-3-sft-mixture", CHAT, split="train", field_messages="messages"),),
    939_343,
    670_426_314 / 939_343,
    "the data set's card",
    "670,426,314 tokens of Llama 3, as users of the data set counted them",
)
TULU3_OLMO2 = Corpus(
    "Tulu 3 SFT mixture for OLMo 2 (0225)",
    (_entry("allenai/tulu-3-sft-olmo-2-mixture-0225", CHAT, split="train", field_messages="messages"),),
    866_138,
    670_426_314 / 939_343,
    "users of the data set",
    "the tokens per row of the Tulu 3 SFT mixture",
)
ULTRAFEEDBACK_CLEANED = Corpus(
    "UltraFeedback, cleaned",
    (_entry("argilla/ultrafeedback-binarized-preferences-cleaned", PAIRS, split="train"),),
    60_917,
    284_937_773 / 60_917 / BYTES,
    "the data set's card",
    "its bytes",
    notes=("Cleaned of the questions of TruthfulQA, with which a tax on truthfulness could not be measured.",),
)
TULU3_PAIRS = Corpus(
    "Tulu 3 8B preference mixture",
    (_entry("allenai/llama-3.1-tulu-3-8b-preference-mixture", PAIRS, split="train"),),
    271_409,
    1_680_549_462 / 271_409 / BYTES,
    "the data set's card",
    "its bytes",
    notes=("Part of the answers are Tulu 3's own, so that for another base the pairs are off-policy.",),
)
OLMO2_PAIRS = Corpus(
    "OLMo 2 1B preference mixture",
    (_entry("allenai/olmo-2-0425-1b-preference-mix", PAIRS, split="train"),),
    378_341,
    2_738_793_617 / 378_341 / BYTES,
    "the card of the 7B model's mixture; the 1B model's could not be read here",
    "the bytes of the 7B model's mixture",
)
