"""All checks of a run folder, and their report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from untax.check.axolotl_schema import schema_findings, trainer_findings
from untax.check.data import Datasets
from untax.check.disk import disk_findings, rest_of_disk
from untax.check.edits import edited_findings
from untax.check.estimate import Estimate, estimate, shape_of
from untax.check.findings import Finding, State, failed
from untax.check.gpus import VisibleGpu, visible_gpus
from untax.check.hub import hub_findings, hub_names
from untax.check.lengths import Lengths
from untax.check.merges import merge_findings
from untax.check.paths import path_findings
from untax.check.tokenizers import Tokenizers
from untax.check.trainings import Trainings, read_trainings
from untax.check.weights import weight_findings
from untax.errors import UntaxError
from untax.recipes.cost.disk import Disk
from untax.recipes.graph import Plan
from untax.recipes.plan import plan
from untax.recipes.spec import SPEC_NAME, RunSpec, read_spec
from untax.run.preflight import check_files, edited
from untax.run.reads import as_read
from untax.run.todo import todo

ROWS = 1000


@dataclass
class Report:
    """What is known of a run folder.

    Attributes:
        findings: everything that was looked at.
        trainings: what each training takes.
        disk: what is still to be written.
        gpus: that are visible.
        due: (node, reason) of all that would run, in order.
        nodes: how many the folder has.
        edited: YAMLs that differ from what the recipe expands to.
    """

    findings: list[Finding] = field(default_factory=list)
    trainings: list[Estimate] = field(default_factory=list)
    disk: Disk | None = None
    gpus: list[VisibleGpu] = field(default_factory=list)
    due: list[tuple[str, str]] = field(default_factory=list)
    nodes: int = 0
    edited: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether anything would fail."""
        return failed(self.findings)


def check_folder(
    folder: Path, *, offline: bool = False, rows: int = ROWS, say: Callable[[str], None] = lambda _: None
) -> Report:
    """Look at a run folder; nothing in it is changed.

    Args:
        folder: with ``untax.yaml`` and its YAMLs, which are taken as they stand.
        offline: do not ask the hub.
        rows: how many rows of each dataset are looked at.
        say: for progress.

    Raises:
        UntaxError: there is no recipe, or it is wrong itself.
    """
    spec = read_spec(folder / SPEC_NAME)
    expanded = plan(spec)
    # Axolotl takes paths from the present folder, as it does when the trainings run.
    with contextlib.chdir(folder):
        report = _check(spec, expanded, offline, rows, say)
    if report.disk is not None:
        report.findings += disk_findings(report.disk, folder)
    return report


def _check(spec: RunSpec, expanded: Plan, offline: bool, rows: int, say: Callable[[str], None]) -> Report:
    folder = Path()
    report = Report(nodes=len(expanded.nodes))
    trainings = read_trainings(expanded, folder, spec.base)
    report.findings += [*trainings.findings, *path_findings(trainings.found, expanded, folder)]
    report.findings += weight_findings([spec.base, *(training.base for training in trainings.found)], folder)
    if not trainings.findings:
        report.findings += _as_run(spec, expanded, folder, report.failed)
        report.findings += _cycles(expanded, folder, report.findings)
        report.edited, report.due = edited(expanded, folder), _todo(spec, expanded, folder)
        report.findings += [*edited_findings(report.edited, folder), *merge_findings(expanded, folder, report.edited)]
    schema = [schema_findings(training, spec.device) for training in trainings.found]
    report.findings += [finding for found in schema for finding in found]
    report.findings += [finding for training in trainings.found for finding in trainer_findings(training)]
    names = hub_names(trainings.found, expanded, folder)
    if names and not offline:
        say("asking the hub")
    report.findings += hub_findings(names, offline=offline)
    # Nothing can be reckoned from values that Axolotl refuses.
    sound = [training for training, found in zip(trainings.found, schema, strict=True) if not found]
    trainings = Trainings(sound, trainings.findings)
    lengths = _lengths(expanded, trainings, folder, rows, say, report)
    report.gpus = visible_gpus() if spec.device == "cuda" else []
    _costs(spec, expanded, trainings, lengths, folder, report)
    return report


def _as_run(spec: RunSpec, expanded: Plan, folder: Path, found_already: bool) -> list[Finding]:
    """What ``untax run`` would refuse, unless the reason was found already."""
    try:
        check_files(expanded, folder, spec.suite)
    except UntaxError as error:
        return [] if found_already else [Finding("fail", error.where or SPEC_NAME, error.problem, error.fix or "")]
    return []


def _cycles(expanded: Plan, folder: Path, found: list[Finding]) -> list[Finding]:
    """Nodes that wait for each other, unless that was found already."""
    try:
        as_read(expanded, folder)
    except UntaxError as error:
        cycle = Finding("fail", error.where or SPEC_NAME, error.problem, error.fix or "")
        return [] if cycle in found else [cycle]
    return []


def _todo(spec: RunSpec, expanded: Plan, folder: Path) -> list[tuple[str, str]]:
    try:
        return [(due.node.name, due.reason) for due in todo(expanded, folder, spec.suite)]
    # A run that was moved may name what no file or hub can be asked about.
    except (UntaxError, OSError, ValueError):
        return [(node.name, "unknown") for node in expanded.nodes]  # said as a finding


def _lengths(
    expanded: Plan,
    trainings: Trainings,
    folder: Path,
    rows: int,
    say: Callable[[str], None],
    report: Report,
) -> list[Lengths | None]:
    tokenizers = Tokenizers(folder)
    datasets = Datasets(expanded, folder, rows, tokenizers, say)
    found = [datasets.lengths(training) for training in trainings.found]
    report.findings += [*tokenizers.findings, *datasets.findings]
    for training, lengths in zip(trainings.found, found, strict=True):
        report.findings += [] if lengths is None else length_findings(training.config, lengths)
    return found


def length_findings(config: str, lengths: Lengths) -> list[Finding]:
    """Rows that are too long, and rows that nothing is learnt from."""
    found: list[Finding] = []
    where = f"{config}: sequence_len, excess_length_strategy"
    if lengths.too_long:
        share = f"{lengths.too_long:.1%} of the rows are longer than {lengths.limit} tokens"
        what = {"truncate": "and are cut off", "raise": "which stops the training"}.get(
            lengths.strategy, "and are left out"
        )
        state: State = "fail" if lengths.strategy == "raise" else "note"
        found.append(Finding(state, where, f"{share} {what}", f"The longest has {lengths.longest} tokens."))
    if lengths.without_answer:
        text = f"{lengths.without_answer:.1%} of the rows have no token to train on within {lengths.limit}"
        fix = "Their prompts are too long or their answers empty: raise sequence_len, or leave them out."
        found.append(Finding("fail" if lengths.without_answer == 1 else "note", where, text, fix))
    return found


def _costs(
    spec: RunSpec,
    expanded: Plan,
    trainings: Trainings,
    lengths: Sequence[Lengths | None],
    folder: Path,
    report: Report,
) -> None:
    shapes = {}
    for base in dict.fromkeys([spec.base, *(training.base for training in trainings.found)]):
        shapes[base], found = shape_of(base, folder)
        report.findings += found
    for training, own in zip(trainings.found, lengths, strict=True):
        made, found = estimate(training, own, shapes[training.base], report.gpus, spec.device)
        report.trainings.append(made)
        report.findings += found
    due = [name for name, _ in report.due]
    report.disk = rest_of_disk(expanded, trainings.found, report.trainings, shapes, due, folder, spec.base)
