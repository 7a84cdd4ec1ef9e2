"""Proof that PEFT applies every key of an adapter: it drops unknown ones and makes up missing ones without an error."""

from __future__ import annotations

import warnings
from typing import Any

from untax.errors import UntaxError
from untax.merge.references import Reference


def check_keys(reference: Reference, *, trust_remote_code: bool = False) -> None:
    """Load the adapter with PEFT onto its base without weights (meta device) and compare the keys.

    Raises:
        UntaxError: PEFT would drop a key of the adapter, finds one missing, or cannot load it at all.
    """
    assert reference.adapter is not None
    where = reference.adapter.path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = _load(reference, trust_remote_code)
    except Exception as error:  # PEFT and torch raise whatever they meet
        reason = " ".join(line.strip() for line in str(error).splitlines()[:3])
        raise UntaxError(
            f"PEFT cannot load the adapter: {reason}", where=where, fix="Merge it with the base it was trained on."
        ) from error
    for keys, what in ((result.unexpected_keys, "would drop"), (result.missing_keys, "misses")):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise UntaxError(
                f"PEFT {what} this key of the adapter: {keys[0]}{more}.",
                where=where,
                fix="The adapter and its configuration or base do not belong together: train or copy it again.",
            )


def _load(reference: Reference, trust_remote_code: bool) -> Any:
    import peft
    import torch
    from mergekit.common import get_auto_cls
    from transformers import AutoConfig

    assert reference.adapter is not None
    config = AutoConfig.from_pretrained(reference.base.folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = get_auto_cls(config.architectures[0]).from_config(config, trust_remote_code=trust_remote_code)
    adapter = peft.PeftConfig.from_pretrained(reference.adapter.folder)
    adapted = peft.PeftModel(model, adapter, low_cpu_mem_usage=True)
    return adapted.load_adapter(reference.adapter.folder, "default", low_cpu_mem_usage=True)
