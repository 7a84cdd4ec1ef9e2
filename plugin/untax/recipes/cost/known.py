"""The shape of a base that is named in a recipe: from its folder, the hub's cache, or the few that are known here."""

from __future__ import annotations

import json
from pathlib import Path

from untax.errors import UntaxError
from untax.recipes.cost.architecture import Architecture, from_config

LLAMA2_7B = Architecture(32, 4096, 11008, 32, 32, 128, 32000)
LLAMA2_13B = Architecture(40, 5120, 13824, 40, 40, 128, 32000)
LLAMA3_8B = Architecture(32, 4096, 14336, 32, 8, 128, 128256)
MISTRAL_7B = Architecture(32, 4096, 14336, 32, 8, 128, 32000)
TINYLLAMA = Architecture(22, 2048, 5632, 32, 4, 64, 32000)

KNOWN = {
    "meta-llama/Llama-2-7b-hf": LLAMA2_7B,
    "meta-llama/Llama-2-13b-hf": LLAMA2_13B,
    "meta-llama/Meta-Llama-3-8B": LLAMA3_8B,
    "meta-llama/Llama-3.1-8B": LLAMA3_8B,
    "mistralai/Mistral-7B-v0.1": MISTRAL_7B,
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": TINYLLAMA,
    "TinyLlama/TinyLlama_v1.1": TINYLLAMA,
}
"""Bases that may be estimated without a file of theirs at hand: those of the papers and a few of their size."""


def find_architecture(base: str, folder: Path = Path()) -> Architecture | None:
    """The shape of a base; None for one of which nothing is on this machine.

    Args:
        base: a model folder, relative to ``folder``, or a hub id.
        folder: the run folder.

    Raises:
        UntaxError: its ``config.json`` cannot be read or describes another kind of model.
    """
    config = config_file(base, folder)
    return KNOWN.get(base) if config is None else read_architecture(config)


def read_architecture(config: Path) -> Architecture:
    """The shape that a ``config.json`` describes.

    Raises:
        UntaxError: it cannot be read or describes another kind of model.
    """
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UntaxError(f"This is no configuration of a model: {error}", where=config) from error
    if not isinstance(content, dict):
        raise UntaxError("This is no configuration of a model.", where=config)
    return from_config(content, where=config)


def config_file(base: str, folder: Path = Path()) -> Path | None:
    """The ``config.json`` of a model folder, or of a hub id in the hub's cache; None without one."""
    local = folder / base
    if local.is_dir():
        found = local / "config.json"
        return found if found.is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    try:
        cached = try_to_load_from_cache(base, "config.json")
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None
