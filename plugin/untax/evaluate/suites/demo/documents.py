"""Rows, prompts and scores of the demo suite's three tasks, as lm-eval calls them.

lm-eval loads this file by its path, beside the YAMLs, so it imports nothing of untax and works from any folder.

The text that is scored is the text that is trained on, token by token: Axolotl's ``type: alpaca`` tokenises prompt and
response apart and joins the ids, so that a response begins with a word-start token. Here the same ids come from one
text with a space after the prompt's last newline. lm-eval moves white space that ends a context into the
continuation; the prompt's last newline is therefore written at the start of the continuation, scored alone as well,
and subtracted. The end-of-sequence token is not scored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

NO_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Response:"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}"
    "\n\n### Response:"
)
NEWLINE = "\n"  # ends the Alpaca prompt


def rows(file: str, **_: Any) -> dict[str, Dataset]:
    """The test split: one document per line of ``file``, a path relative to this folder."""
    from datasets import Dataset

    with (Path(__file__).parent / file).open(encoding="utf-8") as lines:
        return {"test": Dataset.from_list([json.loads(line) for line in lines])}


def prompt(doc: dict[str, Any]) -> str:
    """The Alpaca prompt of a row or of a pair (an instruction without input), without its last newline."""
    if doc.get("input"):
        return WITH_INPUT.format(instruction=doc["instruction"], input=doc["input"])
    return NO_INPUT.format(instruction=doc.get("prompt") or doc["instruction"])


def response(doc: dict[str, Any]) -> list[str]:
    """The continuations to score for a row: its response, and the newline that has to be subtracted."""
    return [f"{NEWLINE} {doc['output']}", NEWLINE]


def pair(doc: dict[str, Any]) -> list[str]:
    """The continuations to score for a pair: chosen, rejected, newline."""
    return [f"{NEWLINE} {doc['chosen']}", f"{NEWLINE} {doc['rejected']}", NEWLINE]


def response_nll(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """The response's negative log-likelihood in nats and its number of tokens."""
    (whole, _), (newline, _) = results
    return {"nll_per_token": (newline - whole, doc["tokens"])}


def text_nll(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """A text's negative log-likelihood in nats and its number of tokens."""
    (whole, _) = results[0]
    return {"nll_per_token": (-whole, doc["tokens"])}


def preference(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """1 where chosen is likelier than rejected, per token (``acc``) and summed (``acc_sum``); a tie counts 1/2."""
    (chosen, _), (rejected, _), (newline, _) = results
    margin = (chosen - newline) / doc["chosen_tokens"] - (rejected - newline) / doc["rejected_tokens"]
    return {"acc": _above_zero(margin), "acc_sum": _above_zero(chosen - rejected)}


def weighted_mean(items: list[tuple[float, int]]) -> float:
    """Sum of NLL over sum of tokens: every token counts the same, in long rows and in short ones."""
    return sum(nll for nll, _ in items) / sum(tokens for _, tokens in items)


def _above_zero(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)
