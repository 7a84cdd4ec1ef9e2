"""What a training's manifest must prove: that the plugins its YAML asks for really acted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from untax.penalty.settings import PREFIX
from untax.penalty.settings import read_settings as penalty_settings
from untax.training.weights import measured

ONE_TO_ONE = {"alpaca", "alpaca_chat", "chat_template", "input_output", "chatml", "llama3", "zephyr"}
"""Types of rows of which each becomes at most one row to train on."""


def missing_proof(
    config: dict[str, Any], manifest: dict[str, Any], *, output: Path | None = None, same_rows: bool = False
) -> str | None:
    """What a training's manifest fails to prove of its YAML, or None.

    Args:
        config: the YAML.
        manifest: the manifest.
        output: the folder of the adapter, whose weights are measured where the manifest, of an older version, does not
            say what they are; None: they are not.
        same_rows: whether the cluster that the YAML asks for is known to hold the very rows that were trained on: then
            it does not matter what it is called now.
    """
    return (
        _cluster(config, manifest, same_rows=same_rows)
        or _rows(config, manifest)
        or _penalty(config, manifest)
        or _trained(manifest)
        or _weights(manifest, output)
    )


def _cluster(config: dict[str, Any], manifest: dict[str, Any], *, same_rows: bool) -> str | None:
    if config.get("disperse_clusters") is None:
        return None
    section = manifest.get("disperse")
    if section is None:
        return "the manifest does not prove that DispersePlugin ran: all rows may have been trained on"
    wanted = (config["disperse_clusters"], config.get("disperse_cluster"))
    if (section.get("clusters"), section.get("cluster")) != wanted and not same_rows:
        trained = f"cluster {section.get('cluster')} of {section.get('clusters')}"
        return f"{trained} was trained, and the YAML asks for {wanted[1]} of {wanted[0]}"
    return None


def _rows(config: dict[str, Any], manifest: dict[str, Any]) -> str | None:
    """Whether Axolotl read as many rows as the assignment gave it, and the trainer had no more than those.

    It may have had fewer: Axolotl leaves out rows that are too long, too short, or equal if told to.
    """
    section, training = manifest.get("disperse") or {}, manifest.get("training") or {}
    if "rows_read" not in section:
        return None
    assigned, read = section.get("rows"), section["rows_read"]
    if read is None:
        return f"Axolotl read other files than those of its cluster of {assigned} rows"
    if read != assigned:
        return f"Axolotl read {read} rows, and the assignment has {assigned}"
    trained = (training.get("rows") or 0) + (training.get("rows_held_out") or 0)
    if trained > read and all(map(_one_to_one, config.get("datasets") or [])):
        return f"the trainer had {trained} rows, and the assignment has {assigned}"
    return None


def _one_to_one(entry: object) -> bool:
    """Whether Axolotl makes at most one row to train on of each row, as it does but for long texts of some types."""
    kind = entry.get("type") if isinstance(entry, dict) else None
    return isinstance(kind, str) and kind.split(".")[0].split(":")[0] in ONE_TO_ONE


def _penalty(config: dict[str, Any], manifest: dict[str, Any]) -> str | None:
    settings = penalty_settings(config, where="the YAML")
    if not settings.active:
        return None
    section, steps = manifest.get("penalty"), (manifest.get("training") or {}).get("steps")
    if section is None:
        return "the manifest does not prove that DeltaPenaltyPlugin ran: the delta was not penalised"
    penalised = (section.get("steps_penalised") or 0) + (section.get("steps_before") or 0)
    if not penalised:
        return "the manifest does not prove that DeltaPenaltyPlugin ran: no step was penalised"
    for name, wanted in settings.identity.items():
        if section.get(name) != wanted:
            key, found = PREFIX + _KEY_OF.get(name, name), section.get(name)
            return f"it was trained with {key} {found}, and the YAML asks for {wanted}"
    if not section.get("modules"):
        return "the penalty covered no layer"
    zeros = (section.get("pruned") or {}).get("zeros") or 0
    if settings.sparsity and zeros < settings.sparsity - 1e-9:
        return f"the delta has {zeros:.1%} zeros, and delta_sparsity asks for {settings.sparsity:.1%}"
    if penalised != steps:
        return f"only {penalised} of {steps} steps were penalised"
    return None


# What the manifest calls otherwise than the YAML.
_KEY_OF = {"only": "modules", "sparsity_target": "sparsity"}


def _trained(manifest: dict[str, Any]) -> str | None:
    training = manifest.get("training") or {}
    if not training.get("steps"):
        return "the manifest does not prove a single training step"
    losses = [training.get("loss_first"), training.get("loss_last"), training.get("train_loss")]
    if training.get("losses_not_finite") or any(loss is not None and not math.isfinite(loss) for loss in losses):
        return "the loss was NaN or infinite"
    return None


def _weights(manifest: dict[str, Any], output: Path | None) -> str | None:
    section = manifest.get("weights")
    if section is None:
        if output is None:
            return None
        section = measured([output / name for name in manifest["outputs"] if name.endswith(".safetensors")])
    if section.get("not_finite") is not None:
        return f"the weights hold NaN or infinity, in {section['not_finite']}"
    if section.get("deltas") and section.get("zero_deltas") == section["deltas"]:
        return f"the adapter is all zeros: B @ A is 0 in all {section['deltas']} layers, so nothing was learned"
    return None
