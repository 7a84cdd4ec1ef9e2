"""Makes the bundled data and base model again, byte for byte.

    python -m untax.demo.build_data --source ../shared --out plugin/untax/demo

Writes ``data/{sft,heldout,preference,preference_heldout,base_samples}.jsonl``, ``NOTICE`` and ``base/``. Rows are
picked in the order of a keyed hash, so that nothing depends on a generator's state or on the order of the source.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax.demo import sampling, sources
from untax.demo.notice import notice
from untax.evaluate.suites.demo import documents
from untax.files import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
MAX_ROW = 288  # tokens of prompt and response with BOS and EOS
MAX_PAIR = 440  # tokens of prompt and longer answer with BOS and EOS
HELDOUT_SHARE = 1 / 10  # of each source's training rows
TRAIN_PAIRS, HELDOUT_PAIRS = 440, 150
MAX_PAIRS_PER_HELDOUT_PROMPT = 4  # prompts with more pairs are trained on: pairs of one prompt are not independent
SAMPLES, SAMPLE_TOKENS = 120, 200


class Lengths:
    """Token counts as training and scoring see them: prompt, then response, tokenised apart."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def prompt(self, row: Row) -> int:
        """Tokens of the Alpaca prompt, with BOS."""
        return len(self.tokenizer.encode(documents.prompt(row) + documents.NEWLINE))

    def answer(self, text: str) -> int:
        """Tokens of a response, without EOS."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))


def pick_pairs(rows: list[Row], lengths: Lengths) -> tuple[list[Row], list[Row]]:
    """Training and held-out pairs; no prompt is in both."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(_pairs(rows, lengths), key=lambda row: sources.order(row["chosen"], row["rejected"])):
        groups.setdefault(sources.key(row["prompt"]), []).append(row)
    train: list[Row] = []
    heldout: list[Row] = []
    for prompt in sorted(groups, key=sources.order):
        few = len(groups[prompt]) <= MAX_PAIRS_PER_HELDOUT_PROMPT
        (heldout if few and len(heldout) < HELDOUT_PAIRS else train).extend(groups[prompt])
    return [_only(row, "source", "prompt", "chosen", "rejected") for row in train][:TRAIN_PAIRS], heldout


def _pairs(rows: list[Row], lengths: Lengths) -> Iterable[Row]:
    """Pairs that fit, each once; those that people ranked both ways are left out."""
    clean = [{name: row[name].strip() for name in ("source", "prompt", "chosen", "rejected")} for row in rows]
    ranked = Counter((row["prompt"], row["chosen"], row["rejected"]) for row in clean)
    for row in {tuple(row.values()): row for row in clean}.values():
        prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
        if not (prompt and chosen and rejected) or chosen == rejected or (prompt, rejected, chosen) in ranked:
            continue
        if not sources.usable(prompt, chosen, rejected) or len(prompt + max(chosen, rejected, key=len)) > 8 * MAX_PAIR:
            continue
        counts = {"chosen_tokens": lengths.answer(chosen), "rejected_tokens": lengths.answer(rejected)}
        if lengths.prompt(row) + max(counts.values()) + 1 <= MAX_PAIR:
            yield {**row, **counts}


def pick_rows(
    rows: list[Row], lengths: Lengths, *, train_not: set[str], heldout_not: set[str]
) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows of every source; no instruction is in both.

    Args:
        rows: the source's rows.
        lengths: token counts.
        train_not: keys of instructions that must not be trained on.
        heldout_not: keys of instructions that must not be held out.
    """
    train: list[Row] = []
    heldout: list[Row] = []
    outputs: set[str] = set()
    taken: set[str] = set()
    for source, (_, _, quota) in sources.INSTRUCTIONS.items():
        fitting = list(_first(_rows(rows, source, lengths, taken), 2 * quota))
        wanted = round(min(quota, len(fitting)) * HELDOUT_SHARE)
        held = [row for row in fitting if sources.key(row["instruction"]) not in heldout_not][:wanted]
        keys = {sources.key(row["instruction"]) for row in held} | train_not
        outputs |= {row["output"] for row in held if len(row["output"]) > 40}
        rest = (row for row in fitting if sources.key(row["instruction"]) not in keys and row["output"] not in outputs)
        heldout += held
        train += list(_first(rest, quota))
    train.sort(key=lambda row: sources.order(row["instruction"], row["input"]))
    return [_only(row, "source", "instruction", "input", "output") for row in train], heldout


def _rows(rows: list[Row], source: str, lengths: Lengths, taken: set[str]) -> Iterable[Row]:
    """Rows of one source that fit, in hash order; a pair of instruction and input occurs once."""
    of_source = [row for row in rows if row["source"] == source]
    for row in sorted(of_source, key=lambda row: sources.order(row["instruction"], row["input"] or "", row["output"])):
        texts = {name: (row[name] or "").strip() for name in ("instruction", "input", "output")}
        same = sources.key(texts["instruction"] + "\n" + texts["input"])
        if not texts["instruction"] or not texts["output"] or same in taken or not sources.usable(*texts.values()):
            continue
        if len("".join(texts.values())) > 8 * MAX_ROW:
            continue
        tokens = lengths.answer(texts["output"])
        if lengths.prompt(texts) + tokens + 1 <= MAX_ROW:
            taken.add(same)
            yield {"source": source, **texts, "tokens": tokens}


def pick_samples(base: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Row], str]:
    """Texts of the base model that keep their tokens as text, and a sentence on how many did."""
    drawn = sampling.sample_ids(base, count=SAMPLES + 24, length=SAMPLE_TOKENS, seed=sources.SEED)
    texts = [(sampling.round_trip(tokenizer, ids), len(ids)) for ids in drawn]
    kept = [(text, tokens) for text, tokens in texts if text is not None]
    clean = [{"text": text, "tokens": tokens} for text, tokens in kept if not sources.OFFENSIVE.search(text)]
    share = f"{len(kept)} of {len(drawn)} samples ({len(kept) / len(drawn):.0%})"
    taken = clean[:SAMPLES]
    return taken, f"{share} have a text that is tokenised as it was sampled; the first {len(taken)} of those are kept."


def build(source: Path, out: Path) -> None:
    """Write ``out/base`` and ``out/data`` from the public data in ``source``.

    Raises:
        UntaxError: a source file is missing.
    """
    from transformers import AutoTokenizer

    base = source / "models" / "stories260k"
    tokenizer = AutoTokenizer.from_pretrained(base, model_max_length=10**6)
    lengths = Lengths(tokenizer)
    pairs = sources.read(source / "data" / "pref" / "pairs.jsonl.gz", sources.PREFERENCES)
    preference, preference_heldout = pick_pairs(pairs, lengths)
    held_prompts = {sources.key(row["prompt"]) for row in preference_heldout}
    all_prompts = held_prompts | {sources.key(row["prompt"]) for row in preference}
    rows = sources.read(source / "data" / "sft" / "mix.jsonl.gz", sources.INSTRUCTIONS)
    sft, heldout = pick_rows(rows, lengths, train_not=held_prompts, heldout_not=all_prompts)
    samples, kept = pick_samples(base, tokenizer)
    files = {
        "sft": sft,
        "heldout": heldout,
        "preference": preference,
        "preference_heldout": preference_heldout,
        "base_samples": samples,
    }
    for name, content in files.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        write_text(out / "data" / f"{name}.jsonl", "".join(lines))
    write_text(out / "NOTICE", notice(files, kept))
    _copy_base(base, out / "base")


def _copy_base(base: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(base.iterdir()):
        (out / file.name).unlink(missing_ok=True)
        shutil.copyfile(file, out / file.name)


def _only(row: Row, *names: str) -> Row:
    return {name: row[name] for name in names}


def _first(rows: Iterable[Row], count: int) -> Iterable[Row]:
    return (row for _, row in zip(range(count), rows, strict=False))


def main() -> None:
    """The command line."""
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="the folder that holds data/ and models/")
    parser.add_argument("--out", type=Path, required=True, help="the folder of untax.demo")
    arguments = parser.parse_args()
    build(arguments.source, arguments.out)


if __name__ == "__main__":
    main()
