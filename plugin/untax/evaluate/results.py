"""lm-eval's results as the files of ``results/<model>/``: its JSON, and one line per scored sample."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from untax.errors import UntaxError
from untax.evaluate import measures

MACHINE = ("pretty_env_info", "upper_git_hash", "git_hash")  # say nothing of the model


def results_json(found: dict[str, Any], *, model: str, arguments: dict[str, Any]) -> str:
    """The JSON that ``lm_eval --output_path`` writes, without what describes this machine and its folders.

    The standard error of NLL per token, which lm-eval leaves out, is filled in.
    """
    content = {name: value for name, value in found.items() if name not in {*MACHINE, "samples"}}
    content["config"] = {**content["config"], "model": "hf", "model_args": {"pretrained": model, **arguments}}
    content["task_hashes"] = {task: _task_hash(samples) for task, samples in found["samples"].items()}
    content |= {"model_source": "hf", "model_name": model, "model_name_sanitized": model.replace("/", "__")}
    for task, samples in found["samples"].items():
        if "nll_per_token,none" in content["results"][task]:
            _, stderr = measures.nll_per_token([sample_row(task, sample) for sample in samples])
            content["results"][task]["nll_per_token_stderr,none"] = stderr if math.isfinite(stderr) else "N/A"
    return json.dumps(content, indent=2, ensure_ascii=False, default=_plain) + "\n"


def sample_row(task: str, sample: dict[str, Any]) -> dict[str, Any]:
    """One scored sample: task, doc_id, hashes of document and prompt, and its metrics.

    ``nll_per_token`` becomes ``nll`` (nats, summed) and ``tokens``; other metrics keep their names.
    """
    row = {"task": task, **{name: sample[name] for name in ("doc_id", "doc_hash", "prompt_hash")}}
    for metric in sample["metrics"]:
        if metric == "nll_per_token":
            row["nll"], row["tokens"] = sample[metric]
        else:
            row[metric] = sample[metric]
    return row


def samples_jsonl(found: dict[str, Any]) -> str:
    """All samples, one JSON object per line, ordered by task and document."""
    rows = [sample_row(task, sample) for task, samples in found["samples"].items() for sample in samples]
    rows.sort(key=lambda row: (row["task"], row["doc_id"]))
    return "".join(json.dumps(row, default=_plain) + "\n" for row in rows)


def read_samples(folder: Path, suite: str) -> dict[str, list[dict[str, Any]]]:
    """Task -> its samples, as ``samples_jsonl`` wrote them.

    Raises:
        UntaxError: the suite was not scored into this folder, or its file is damaged.
    """
    path = folder / f"{suite}.samples.jsonl"
    tasks: dict[str, list[dict[str, Any]]] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                tasks.setdefault(row["task"], []).append(row)
    except FileNotFoundError as error:
        raise UntaxError(
            "There are no scores here.", where=path, fix=f"Run `untax eval MODEL --suite {suite}` first."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UntaxError(
            f"The scores cannot be read: {error!r}.", where=path, fix="Score the model again with --force."
        ) from error
    return tasks


def _task_hash(samples: list[dict[str, Any]]) -> str:
    joined = "".join(sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"] for sample in samples)
    return hashlib.sha256(joined.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """What JSON has no word for: functions by name, sets sorted, NumPy numbers as Python's."""
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    if isinstance(value, set):
        return sorted(value, key=str)
    return value.item() if hasattr(value, "item") else str(value)
