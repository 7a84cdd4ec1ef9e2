"""What a training's manifest must prove: that the plugins its YAML asks for really acted."""

from __future__ import annotations

import math
from typing import Any

from untax.data.corpus import entries_digest
from untax.disperse.settings import read_settings as disperse_settings
from untax.penalty.settings import PREFIX
from untax.penalty.settings import read_settings as penalty_settings


def missing_proof(config: dict[str, Any], manifest: dict[str, Any]) -> str | None:
    """What the manifest fails to prove of the YAML, or None."""
    if manifest["what"] == "assignment":
        return _disperse_settings(config, manifest["disperse"])
    return _cluster(config, manifest) or _penalty(config, manifest) or _trained(manifest)


def _disperse_settings(config: dict[str, Any], section: dict[str, Any]) -> str | None:
    if section.get("entries") != entries_digest(config.get("datasets") or []):
        return "datasets now names other rows than it was made from"
    settings = disperse_settings(config, where="the YAML", cluster_needed=False)
    differing = [f"{key} {old!r} instead of {new!r}" for key, (old, new) in settings.differences(section).items()]
    return f"it was made with {', '.join(differing)}" if differing else None


def _cluster(config: dict[str, Any], manifest: dict[str, Any]) -> str | None:
    if config.get("disperse_clusters") is None:
        return None
    section = manifest.get("disperse")
    if section is None:
        return "the manifest does not prove that DispersePlugin ran: all rows may have been trained on"
    wanted = (config["disperse_clusters"], config.get("disperse_cluster"))
    if (section["clusters"], section["cluster"]) != wanted:
        trained = f"cluster {section['cluster']} of {section['clusters']}"
        return f"{trained} was trained, and the YAML asks for {wanted[1]} of {wanted[0]}"
    return None


def _penalty(config: dict[str, Any], manifest: dict[str, Any]) -> str | None:
    settings = penalty_settings(config, where="the YAML")
    if not settings.active:
        return None
    section, steps = manifest.get("penalty"), manifest.get("training", {}).get("steps")
    if section is None:
        return "the manifest does not prove that DeltaPenaltyPlugin ran: the delta was not penalised"
    penalised = section.get("steps_penalised", 0) + section.get("steps_before", 0)
    if not penalised:
        return "the manifest does not prove that DeltaPenaltyPlugin ran: no step was penalised"
    for name, wanted in settings.identity.items():
        if section.get(name) != wanted:
            key, found = PREFIX + _KEY_OF.get(name, name), section.get(name)
            return f"it was trained with {key} {found}, and the YAML asks for {wanted}"
    if not section.get("modules"):
        return "the penalty covered no layer"
    zeros = (section.get("pruned") or {}).get("zeros", 0)
    if settings.sparsity and zeros < settings.sparsity - 1e-9:
        return f"the delta has {zeros:.1%} zeros, and delta_sparsity asks for {settings.sparsity:.1%}"
    if penalised != steps:
        return f"only {penalised} of {steps} steps were penalised"
    return None


# What the manifest calls otherwise than the YAML.
_KEY_OF = {"only": "modules", "sparsity_target": "sparsity"}


def _trained(manifest: dict[str, Any]) -> str | None:
    training = manifest.get("training", {})
    if not training.get("steps"):
        return "the manifest does not prove a single training step"
    losses = [training.get("loss_first"), training.get("loss_last"), training.get("train_loss")]
    if any(loss is not None and not math.isfinite(loss) for loss in losses):
        return "the loss was NaN or infinite"
    return None
