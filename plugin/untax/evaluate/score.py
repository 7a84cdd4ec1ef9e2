"""Scores one model on one suite with lm-eval."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from untax.errors import UntaxError
from untax.evaluate import model_folder, suites
from untax.evaluate.results import results_json, samples_jsonl
from untax.files import write_text
from untax.manifest import changed_outputs, digest_files, digest_model, read_manifest, write_manifest

LOG = logging.getLogger(__name__)
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model")
EXPECTED = ("Custom kwargs can be passed", "`pretrained` model kwarg is not of", "Passed an already-initialized model")


def manifest_name(suite: str) -> str:
    """The manifest of one suite's scores; several suites of a model share its results folder."""
    return f"{suite}.untax.json"


def score(
    model: str,
    suite: str,
    *,
    results: Path,
    limit: int | None = None,
    batch_size: int | str = 16,
    device: str | None = None,
    force: bool = False,
    say: Callable[[str], object] = LOG.info,
) -> dict[str, Any]:
    """Score ``model`` and write ``results/<suite>.json``, ``.samples.jsonl`` and, last, ``.untax.json``.

    Scores that are already there for the same weights, tokenizer, suite and limit are kept.

    Args:
        model: a model folder, or a hub id.
        suite: the name of a suite.
        results: the model's own results folder.
        limit: score only so many documents of each task.
        batch_size: sequences at a time, or ``auto``.
        device: where to run; a GPU if there is one by default.
        force: score again even if nothing changed.
        say: called with a sentence when there is nothing to do.

    Returns:
        lm-eval's results, as written.

    Raises:
        UntaxError: unknown suite, limit below 1, or a model that cannot be scored.
    """
    started = time.time()
    folder = suites.suite_folder(suite)
    if limit is not None and limit < 1:
        raise UntaxError("The limit must be at least 1.", where="--limit", fix="Leave it out to score everything.")
    model_folder.check_model(model)
    inputs = _inputs(model, suite, limit)
    if not force and is_scored(model, suite, results, limit=limit):
        say(f"{model}: already scored on {suite}, nothing to do (--force scores again).")
        return json.loads((results / f"{suite}.json").read_text(encoding="utf-8"))
    add_bos_token = suites.suite_adds_bos(suite)
    found = _run(model, suite, folder, limit, batch_size, device, add_bos_token)
    name = model_folder.model_name(model)
    arguments = {"dtype": "auto", "add_bos_token": add_bos_token}
    write_text(results / f"{suite}.json", results_json(found, model=name, arguments=arguments))
    write_text(results / f"{suite}.samples.jsonl", samples_jsonl(found))
    write_manifest(
        results,
        what="results",
        outputs=[f"{suite}.json", f"{suite}.samples.jsonl"],
        started=started,
        name=manifest_name(suite),
        model=name,
        suite=suite,
        inputs=inputs,
        batch_size=batch_size,
    )
    return json.loads((results / f"{suite}.json").read_text(encoding="utf-8"))


def _inputs(model: str, suite: str, limit: int | None) -> dict[str, Any]:
    tokenizer = digest_files(Path(model), TOKENIZER) if Path(model).is_dir() else digest_model(model)
    return {"model": digest_model(model), "tokenizer": tokenizer, "suite": suites.suite_digest(suite), "limit": limit}


def is_scored(model: str, suite: str, results: Path, *, limit: int | None = None) -> bool:
    """Whether ``results`` holds the finished, unchanged scores of these weights on this suite."""
    manifest = read_manifest(results, manifest_name(suite))
    if manifest is None or changed_outputs(results, manifest):
        return False
    return bool(manifest.get("inputs") == _inputs(model, suite, limit))


def _run(
    model: str,
    suite: str,
    folder: Path,
    limit: int | None,
    batch_size: int | str,
    device: str | None,
    add_bos_token: bool | None,
) -> dict[str, Any]:
    _quiet_lm_eval()
    import lm_eval
    from lm_eval.tasks import TaskManager

    from untax.evaluate import language_model

    lm = language_model.load(model, batch_size=batch_size, device=device, add_bos_token=add_bos_token)
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(
        lm, tasks=[suites.suite_tag(suite)], task_manager=tasks, limit=limit, batch_size=batch_size
    )
    found["config"]["device"] = str(lm.device)
    _refuse_nan(model, found)
    return found


def _refuse_nan(model: str, found: dict[str, Any]) -> None:
    for task, samples in found["samples"].items():
        answers = [answer for sample in samples for answer in sample["filtered_resps"] if isinstance(answer, tuple)]
        if not all(math.isfinite(likelihood) for likelihood, _ in answers):
            raise UntaxError(
                f"The model's likelihoods on {task} are not finite: its weights hold NaN or overflow.",
                where=model,
                fix="Look at the log of the training or merge that made it.",
            )


def _quiet_lm_eval() -> None:
    """Leave out the warnings about what is done here on purpose."""
    for name in ("lm_eval.api.task", "lm_eval.models.huggingface"):
        logger = logging.getLogger(name)
        if not logger.filters:
            logger.addFilter(lambda record: not any(text in record.getMessage() for text in EXPECTED))
