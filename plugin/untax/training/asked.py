"""What a training was asked for: the content of its YAML, with every local input known by its digest, not its path.

The whole content is kept in the manifest and not a digest of it, so that a later version that learns of one more key
without effect does not train everything again, and so that the keys that changed can be named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from untax.data.streamed import pretraining_entries
from untax.training.inputs import BASE, DATA_KEYS, FILE_KEYS, PATH_KEYS, entry_name

PLACES = ("output_dir", "dataset_prepared_path", "disperse_assignment", "axolotl_config_path")
"""Keys that say where things lie, and not what is made of them."""
COMMAND_LINE = ("debug", "debug_text_only", "debug_num_examples", "shard", "prompter", "merge_lora", "inference")
"""What Axolotl's commands add to every configuration, also when nothing of it was typed; none of it decides weights."""
SAVING = (
    *("save_steps", "saves_per_epoch", "save_strategy", "save_total_limit", "save_first_step", "dynamic_checkpoint"),
    "auto_resume_from_checkpoints",
)
"""When checkpoints are written, how many are kept, and that a training goes on from its last: none of it decides a
weight of a training without one of ``BY_CHECKPOINTS``. Not among them, since they can: ``resume_from_checkpoint`` names
another beginning; from what ``save_only_model`` writes a training goes on with a new optimizer; and an evaluation
(``eval_steps``) draws random numbers, so that the dropout after it is another."""
REPORTING = (
    *("logging_steps", "use_tensorboard", "profiler_steps", "profiler_steps_start"),
    *("use_wandb", "wandb_name", "wandb_run_id", "wandb_mode", "wandb_project", "wandb_entity", "wandb_watch"),
    *("wandb_log_model", "use_mlflow", "mlflow_tracking_uri", "mlflow_experiment_name", "mlflow_run_name"),
    *("hf_mlflow_log_artifacts", "use_comet", "comet_api_key", "comet_workspace", "comet_project_name"),
    *("comet_experiment_key", "comet_mode", "comet_online", "comet_experiment_config"),
    *("use_trackio", "trackio_project_name", "trackio_run_name", "trackio_space_id"),
    *("use_otel_metrics", "otel_metrics_host", "otel_metrics_port"),
)
"""What is told of a training, how often and to whom."""
BY_CHECKPOINTS = ("early_stopping_patience", "relora")
"""With these, as with ``load_best_model_at_end``, weights depend on what was saved and when."""
BY_LOGS = "loss_watchdog_threshold"
"""With it a training ends by the losses that were logged."""
MISSING = "missing"
"""In place of the digest of an input that should be here and is not."""
LOADERS = ("json", "csv", "parquet", "arrow", "text")
"""Paths of dataset entries that are none: ``data_files`` says where the rows are."""
_FIRST_TURN = "disperse_first_turn"
# A number in YAML 1.2 and for Axolotl, and a text for PyYAML.
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_CONTENT = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Asked:
    """What decides a training.

    Attributes:
        keys: the YAML's content.
        inputs: the digests of its inputs by name, as a manifest has them.
        rows: of a dispersed training what its cluster holds, an item for each source; None of any other.
    """

    keys: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    rows: Any = None


def plain(value: Any) -> Any:
    """A YAML's value as JSON that is equal for what Axolotl takes for the same.

    Keys without a value stay: for those that are missing Axolotl has a default, such as ``bf16: auto``, for these none.

    >>> plain({"learning_rate": "1e-4"}) == plain({"learning_rate": 0.0001})
    True
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    return value if isinstance(value, str | bool | int | float | None) else str(value)


def differences(recorded: Asked, present: Asked) -> list[str]:
    """What is not as it was: inputs whose content changed, as a manifest names them, and keys of the YAML.

    A dispersed training is its cluster's rows: where both sides know them, it does not matter what the datasets are,
    how many clusters there are, and which of them this one is.
    """
    before, now = plain(recorded.keys), plain(present.keys)
    idle = {*PLACES, *COMMAND_LINE, *(_without_effect(before) & _without_effect(now))}
    dispersed = recorded.rows is not None and present.rows is not None
    found: list[str] = []
    for key in dict.fromkeys([*before, *now]):
        of_rows = key == "datasets" or (key.startswith("disperse_") and key != _FIRST_TURN)
        if key not in idle and not (dispersed and of_rows):
            found += _differing(key, before, now, recorded, present)
    if dispersed and recorded.rows != present.rows:
        found.append("the rows of its cluster")
    return list(dict.fromkeys(found))


def _without_effect(keys: Mapping[str, Any]) -> set[str]:
    """Keys on saving and reporting that decide no weight of this training."""
    # As Axolotl does: a key without a value is not the default, False.
    saved = keys.get("load_best_model_at_end", False) is not False or any(keys.get(key) for key in BY_CHECKPOINTS)
    logged = keys.get(BY_LOGS) is not None
    told = [key for key in REPORTING if not (logged and key == "logging_steps")]
    return {*told, *(() if saved else SAVING)}


def _differing(
    key: str, before: Mapping[str, Any], now: Mapping[str, Any], recorded: Asked, present: Asked
) -> Iterator[str]:
    old, new = before.get(key), now.get(key)
    if key in DATA_KEYS:
        yield from _data(key, old, new, recorded, present)
    elif key == "base_model" or key in PATH_KEYS:
        names = (BASE, "tokenizer") if key == "base_model" else (key,)
        for name in names:
            pair = recorded.inputs.get(name), present.inputs.get(name)
            known = name != "tokenizer" or None not in pair
            if known and not _same_input((old, new), pair, needed=key in FILE_KEYS):
                yield name if old == new else key
    elif old != new or (key in before) != (key in now):
        yield key


def _data(key: str, old: Any, new: Any, recorded: Asked, present: Asked) -> Iterator[str]:
    lists = [_entries(key, value) for value in (old, new)]
    if any(entries is None for entries in lists) or len(lists[0] or []) != len(lists[1] or []):
        if old != new:
            yield key
        return
    for one, other in zip(lists[0] or [], lists[1] or [], strict=True):
        names = entry_name(one), entry_name(other)
        pair = recorded.inputs.get(f"{key}/{names[0]}"), present.inputs.get(f"{key}/{names[1]}")
        if not _same_input(names, pair):
            yield f"{key}/{names[0]}" if names[0] == names[1] else key
        if _besides_place(one) != _besides_place(other):
            yield key


def _entries(key: str, value: Any) -> list[dict[str, Any]] | None:
    listed = pretraining_entries({key: value}) if key == "pretraining_dataset" else value or []
    return listed if isinstance(listed, list) and all(isinstance(entry, dict) for entry in listed) else None


def _besides_place(entry: Mapping[str, Any]) -> dict[str, Any]:
    places = ("path", "data_files") if entry.get("path") in LOADERS else ("path",)
    return {name: value for name, value in entry.items() if name not in places and value is not None}


def _same_input(names: tuple[Any, Any], digests: tuple[str | None, str | None], *, needed: bool = False) -> bool:
    """Whether an input is what it was: of the same content, or of the same name where its content is not known.

    Args:
        names: then and now; None where the YAML names none.
        digests: then and now. One that is not here any more was not changed, unless it is needed.
        needed: whether it has to be here.
    """
    then, now = digests
    if _is_content(then):
        return then == now if _is_content(now) or now == MISSING else names[0] == names[1] and not needed
    return names[0] == names[1] and (then is None or now is None or then == now)


def _is_content(digest: str | None) -> bool:
    return digest is not None and _CONTENT.fullmatch(digest) is not None
