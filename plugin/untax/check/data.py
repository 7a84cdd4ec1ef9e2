"""The datasets of the trainings: their columns, their answers, and what Axolotl makes of their rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from untax.check.axolotl_rows import ROW_KEYS, Tokens, chat_template, quiet, tokenised
from untax.check.columns import Answers, missing_columns, needed_columns, read_answers, text_sides
from untax.check.findings import Finding, State, counted
from untax.check.hub import is_cached, is_hub_name, nothing_downloaded
from untax.check.lengths import Lengths, Part, measure
from untax.check.paths import is_pattern
from untax.check.sample import Sample, take_samples
from untax.check.tokenizers import Tokenizers
from untax.check.trainings import Training
from untax.data.first_turn import MESSAGE_COLUMNS
from untax.errors import UntaxError
from untax.recipes.checks import is_local
from untax.recipes.graph import Plan
from untax.run.reads import maker

Say = Callable[[str], None]


@dataclass
class Datasets:
    """Looks at each dataset entry once, however many trainings read it in the same way.

    Attributes:
        plan: of the run folder.
        folder: the run folder, which is the present one too.
        rows: how many of each source are looked at.
        tokenizers: by base.
        say: for progress.
    """

    plan: Plan
    folder: Path
    rows: int
    tokenizers: Tokenizers
    say: Say
    findings: list[Finding] = field(default_factory=list)
    _seen: dict[str, list[Part] | None] = field(default_factory=dict)

    def lengths(self, training: Training) -> Lengths | None:
        """The lengths of a training's rows; None if some of its data could not be looked at."""
        parts: list[Part] = []
        complete = bool(training.entries)
        for index, entry in enumerate(training.entries):
            found = self._entry(training, index, entry)
            parts += found or []
            complete = complete and found is not None
        if not complete:
            return None
        strategy = str(training.keys.get("excess_length_strategy") or "drop").lower()
        return measure(
            parts,
            limit=int(training.keys.get("sequence_len") or 512),
            strategy=strategy,
            share=training.share,
            preference=bool(training.keys.get("rl")),
        )

    def _entry(self, training: Training, index: int, entry: dict[str, Any]) -> list[Part] | None:
        keys = training.keys
        relevant = {key: keys.get(key) for key in (*ROW_KEYS, "disperse_first_turn", "seed") if key != "base_model"}
        known = json.dumps([training.base, relevant, entry], sort_keys=True, default=str)
        if known not in self._seen:
            self._seen[known] = self._look(training, f"{training.config}: datasets, entry {index}", entry)
        return self._seen[known]

    def _look(self, training: Training, where: str, entry: dict[str, Any]) -> list[Part] | None:
        path = str(entry["path"])
        made_by = maker(path, self.plan.nodes)
        if made_by is not None and not (self.folder / path).exists():
            self.findings.append(Finding("unknown", where, f"{path} is not made yet: {made_by} makes it"))
            return None
        if is_hub_name(path, self.folder) and not entry.get("data_files") and not is_cached("dataset", path):
            self.findings.append(Finding("unknown", where, f"{path}: its rows are not on this machine"))
            return None
        if is_local(path) and not is_pattern(path) and not (self.folder / path).exists():
            return None  # said of its path
        self.say(f"reading {path}")
        try:
            with nothing_downloaded(), quiet():
                samples = take_samples(entry, training.keys, self.rows)
        except UntaxError as error:
            state: State = "unknown" if is_hub_name(path, self.folder) else "fail"
            self.findings.append(Finding(state, where, error.problem, error.fix or ""))
            return None
        parts = [self._sample(training, where, sample) for sample in samples]
        return None if None in parts else [part for part in parts if part is not None]

    def _sample(self, training: Training, where: str, sample: Sample) -> Part | None:
        """Columns, answers and tokens, in this order: each says more plainly what the next would stumble over."""
        rl = training.keys.get("rl")
        self.findings += turn_findings(sample, where)
        if not sample.numbers:
            return None
        missing = missing_columns(needed_columns(sample.entry, rl), sample.rows.column_names)
        if missing:
            there = ", ".join(sample.rows.column_names)
            text = f"{sample.source.name} has no column {', '.join(missing)}, which its type reads; it has {there}"
            fix = "Correct `type:`, or name the columns (field_...) that hold the text."
            self.findings.append(Finding("fail", where, text, fix))
            return None
        rows = sample.by_number()
        unread = dialogue_findings(text_sides(rows, sample.entry, rl), sample.entry, where)
        answers = read_answers(rows, sample.entry, rl)
        found = unread or answer_findings(answers, where)
        self.findings += found
        if unread or answers.without:
            return None
        tokens = self._tokens(training, where, sample)
        if tokens is None:
            return None
        if not found:
            looked_at = f"{len(sample.numbers):,} of its {sample.total:,} rows have what its type reads"
            self.findings.append(Finding("ok", where, f"{sample.source.name}: {looked_at}"))
        return Part(tokens, sample.total * (len(sample.numbers) / sample.looked_at) / len(sample.numbers))

    def _tokens(self, training: Training, where: str, sample: Sample) -> list[Tokens] | None:
        tokenizer = self.tokenizers.of(training)
        if tokenizer is None:
            return None
        try:
            self._template(training, where, sample.entry, tokenizer)
            self.say(f"tokenising {len(sample.numbers):,} of {sample.total:,} rows of {sample.source.name}")
            return tokenised(sample.rows, sample.numbers, training.keys, sample.entry, tokenizer)
        except UntaxError as error:
            at = f"{where}: {error.where}" if error.where else where
            self.findings.append(Finding("fail", at, error.problem, error.fix or ""))
            return None

    def _template(self, training: Training, where: str, entry: dict[str, Any], tokenizer: Any) -> None:
        kind = entry.get("type")
        if not isinstance(kind, str) or "chat_template" not in kind:
            return
        own = chat_template(training.keys, entry, tokenizer) == tokenizer.chat_template
        named = entry.get("chat_template") or training.keys.get("chat_template")
        text = f"chat template: {named or 'tokenizer_default'}" + (", the tokenizer's own" if own and not named else "")
        self.findings.append(Finding("ok", where, text))


def turn_findings(sample: Sample, where: str) -> list[Finding]:
    """Rows without a first turn, and why: columns that are not there, or answers that are empty."""
    if not sample.without_turn:
        return []
    counts = f"{sample.without_turn:,} of {sample.looked_at:,} rows"
    there = sample.source.rows.column_names
    if not {*MESSAGE_COLUMNS} & {*there} and not {"instruction", "output"} <= {*there}:
        needed = f"instruction and output, or one of {', '.join(MESSAGE_COLUMNS)}"
        text = f"first_turn reads the columns {needed}; {sample.source.name} has {', '.join(there)}"
        fix = "Rename its columns, or set first_turn: false (--all-turns) to read them as `type:` says."
        return [Finding("fail", where, text, fix)]
    text = f"{counts} have no complete first turn (no instruction, or an empty answer) and are left out"
    if sample.numbers:
        return [Finding("note", where, text, "Remove these rows, if it was not meant so.")]
    fix = "Give rows with answers, or set first_turn: false (--all-turns) to read them as `type:` says."
    return [Finding("fail", where, text, fix)]


def dialogue_findings(columns: list[str], entry: dict[str, Any], where: str) -> list[Finding]:
    """A failure for answers that are text where dialogues are read."""
    if not columns:
        return []
    verb = "is" if len(columns) == 1 else "are"
    text = f"{' and '.join(columns)} {verb} text, and type {_dialogue_type(entry)} reads lists of {{role, content}}"
    fix = (
        "For prompt, chosen and rejected as text: type: {field_prompt: prompt, field_chosen: chosen, field_rejected: "
        'rejected, prompt_format: "{prompt}", chosen_format: "{chosen}", rejected_format: "{rejected}"}, with the '
        "base's prompt around {prompt} (docs/preference.md)."
    )
    return [Finding("fail", where, text, fix)]


def _dialogue_type(entry: dict[str, Any]) -> str:
    """As the recipe names it: of untax's types what stands behind the question mark."""
    kind = str(entry["type"])
    return dict(parse_qsl(kind.partition("?")[2])).get("type", kind)


def answer_findings(answers: Answers, where: str) -> list[Finding]:
    """What is wrong with rows' answers: none at all is a failure, as is half a pair; others are worth knowing."""
    fixes = {True: "Correct `type:` or its fields.", False: "Remove these rows, if it was not meant so."}
    found = [
        Finding("fail", where, f"{counted(rows, answers.rows)} have no {side} answer, or an empty one", fix)
        for side, rows in answers.without.items()
        for fix in [fixes[True] if len(rows) == answers.rows else "Remove these rows."]
    ]
    empty = [] if answers.without else answers.empty
    for rows, what in ((empty, "have no answer, or an empty one"), (answers.equal, "chose what they rejected")):
        if rows:
            every = len(rows) == answers.rows
            text = f"{counted(rows, answers.rows)} {what}"
            found.append(Finding("fail" if every else "note", where, text, fixes[every]))
    if answers.labels in (0, answers.rows):
        which = "desirable" if answers.labels else "undesirable"
        text = f"all {answers.rows:,} rows are {which}: KTO learns from both kinds"
        found.append(Finding("note", where, text, "Check the column label."))
    return found
