"""The preference methods: the Axolotl keys that are theirs, and what their datasets and settings must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from untax.data.pairs import FIELDS, FORMATS, PREFIX, STRATEGIES, pairs_type
from untax.errors import near_names
from untax.recipes.papers import Setting, Settings, paft_preference


@dataclass(frozen=True)
class Method:
    """A preference method.

    Attributes:
        name: as an arm calls it.
        rl: as Axolotl calls it.
        keys: the Axolotl keys that only such methods have.
        reference_model: whether a frozen reference is compared with; with an adapter it is the base without it.
        paired: whether a row holds a chosen and a rejected answer.
        defaults: its settings where the recipe has none.
        refused: keys with which Axolotl does not start.
    """

    name: str
    rl: str
    keys: tuple[str, ...]
    reference_model: bool
    paired: bool
    defaults: Settings = field(default_factory=dict)
    refused: tuple[str, ...] = ()


ZEPHYR = {key: paft_preference()[key] for key in ("rl_beta", "learning_rate")}
AS_DPO = Setting(5e-6, "ours: the Zephyr recipe's for DPO; the method's paper tunes all weights and not an adapter")

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("dpo", "dpo", ("rl_beta", "dpo_label_smoothing"), True, True, ZEPHYR),
        Method(
            "orpo",
            "orpo",
            ("orpo_alpha",),
            False,
            True,
            {
                "orpo_alpha": Setting(0.1, "TRL's default; lambda in the ORPO paper"),
                "learning_rate": Setting(8e-6, "ours: TRL's example for ORPO"),
            },
        ),
        Method(
            "kto",
            "kto",
            ("rl_beta", "kto_desirable_weight", "kto_undesirable_weight", "remove_unused_columns"),
            True,
            False,
            {
                "rl_beta": Setting(0.1, "KTO paper and TRL's default"),
                "kto_desirable_weight": Setting(1.0, "TRL's default; a pair gives one answer of each kind"),
                "kto_undesirable_weight": Setting(1.0, "TRL's default; a pair gives one answer of each kind"),
                "remove_unused_columns": Setting(False, "Axolotl does not start KTO without it"),
                "learning_rate": AS_DPO,
            },
        ),
        Method(
            "simpo",
            "simpo",
            ("rl_beta", "simpo_gamma", "cpo_alpha"),
            False,
            True,
            {
                "rl_beta": Setting(2.0, "SimPO paper, base models"),
                "simpo_gamma": Setting(1.0, "SimPO paper, Llama-3-8B base (1.6 for Mistral-7B base)"),
                "cpo_alpha": Setting(0.0, "SimPO has no NLL term; TRL's default would add one with weight 1"),
                "learning_rate": AS_DPO,
                "warmup_steps": Setting(50, "ours: Axolotl refuses warmup_ratio with simpo"),
            },
            ("warmup_ratio",),
        ),
    )
}

KTO_FORMATS = (
    *("field_system", "field_prompt", "field_completion", "field_label"),
    *("prompt_format", "completion_format"),
)
ONLY_ORPO = "chat_template.argilla"
"""A type that Axolotl has for ORPO alone."""
ROWS_LOST = ("name", "shards", "shards_idx", "preprocess_shards", "weight")
"""Keys that choose rows, and that Axolotl drops from entries of every method but ORPO."""
TEXT_LOST = ("chat_template", "chat_template_jinja", "roles", "message_property_mappings")
"""Keys that decide the texts, and that Axolotl drops from entries of pairs."""


def entry_for(method: str, entry: dict[str, Any]) -> dict[str, Any]:
    """A dataset entry of pairs, as Axolotl reads it for DPO, as ``method`` needs it to train on the same texts.

    What is no entry of pairs but plainly written for the method stays as it is.
    """
    own = entry.get("type")
    if method not in STRATEGIES or _is_own(method, own) or (method == "orpo" and not own):
        return entry
    texts = {key: value for key, value in entry.items() if key not in FIELDS}
    return {**texts, "type": pairs_type(method, entry)}


def _is_own(method: str, own: Any) -> bool:
    """Whether a type can only be meant for this method."""
    if isinstance(own, Mapping):
        return method == "kto" and bool({"field_completion", "field_label", "completion_format"} & set(own))
    return str(own).startswith(PREFIX) or (method == "orpo" and own == ONLY_ORPO)


def entry_problems(method: str, entry: Mapping[str, Any], *, own: bool = False) -> list[str]:
    """What is wrong with a dataset entry for ``method``, a sentence each, with what to write instead.

    Args:
        method: one of ``METHODS``.
        entry: the entry.
        own: whether it is written for this method, and not an entry of pairs that ``entry_for`` adapts.
    """
    found = _lost(method, entry)
    kind = entry.get("type")
    if isinstance(kind, Mapping):
        found += _format_problems(method, kind, own=own)
    if own and method in STRATEGIES and not _is_own(method, kind) and (kind or method != "orpo"):
        found += _unread(method, entry)
    if kind == ONLY_ORPO and method != "orpo":
        found.append(f"type: {ONLY_ORPO} is for ORPO alone; chat_template.argilla_chat reads such rows for the others")
    other = {name: text for name, text in STRATEGIES.items() if name != method}
    wrong = next((name for name, text in other.items() if str(kind).partition("?")[0] == PREFIX + text), None)
    if wrong:
        found.append(f"type: {kind} is for {wrong}: give the type that reads these pairs for DPO")
    return found


def _lost(method: str, entry: Mapping[str, Any]) -> list[str]:
    lost = [key for key in ROWS_LOST if entry.get(key) is not None and method != "orpo"]
    lost += [key for key in TEXT_LOST if entry.get(key) is not None]
    fixes = dict.fromkeys(ROWS_LOST, "make a file of the rows that are meant")
    fixes |= {
        "chat_template": "set it for the training",
        "chat_template_jinja": "set it for the training",
        "roles": "call the roles user, assistant and system in the data",
        "message_property_mappings": "call them role and content in the data",
    }
    return [f"{key} is dropped without a word, for {method}: {fixes[key]}" for key in lost]


def _format_problems(method: str, formats: Mapping[str, Any], *, own: bool) -> list[str]:
    """Keys that no type with formats has, and formats that leave the row's own text out."""
    as_kto = method == "kto" and (own or _is_own(method, formats))
    known = list(KTO_FORMATS if as_kto else FORMATS)
    found = [f"type: unknown key {key}. {near_names(str(key), known)}" for key in formats if key not in known]
    for key in known:
        part = "{" + key.removesuffix("_format") + "}"
        if key.endswith("_format") and formats.get(key) and part not in str(formats[key]):
            found.append(f"type: {key} has no {part}: every row would have the same text")
    return found


def _unread(method: str, entry: Mapping[str, Any]) -> list[str]:
    """Types that read pairs for DPO, in an entry that Axolotl is to read for another method."""
    kind = entry.get("type")
    if isinstance(kind, str) and not kind.startswith("chat_template"):
        return []  # `chatml.argilla` and the like are there for KTO as well.
    if method == "orpo":
        why = "a type with formats is dropped without a word, and the bare columns are trained on"
        why = why if isinstance(kind, Mapping) else f"Axolotl has no {kind} for orpo"
    elif kind is None:
        return []
    else:
        why = "it reads pairs, and Axolotl's types for KTO read single answers"
    return [f"type: {why}; give these pairs for all methods, or `type: {pairs_type(method, entry)}`"]


def key_problems(method: str, keys: Mapping[str, Any]) -> list[str]:
    """What would make a preference training fail late, or train something else than ``method``; a sentence each.

    Args:
        method: one of ``METHODS``.
        keys: all Axolotl keys of the training.
    """
    known = METHODS[method]
    found = [f"{key}: Axolotl refuses it with rl: {known.rl}" for key in known.refused if keys.get(key)]
    if keys.get("sample_packing"):
        found.append("sample_packing: Axolotl refuses it with preference training")
    if isinstance(keys.get("trl"), Mapping) and keys["trl"].get("beta") is not None:
        found.append("trl.beta: it wins over rl_beta and orpo_alpha; give those")
    return found + {"orpo": _orpo_keys, "kto": _kto_keys, "simpo": _simpo_keys}.get(method, lambda _: [])(keys)


def _orpo_keys(keys: Mapping[str, Any]) -> list[str]:
    if keys.get("rl_beta") is None:
        return []
    return ["rl_beta: it wins over orpo_alpha, as the weight of ORPO's odds ratio; leave it out"]


def _kto_keys(keys: Mapping[str, Any]) -> list[str]:
    found = []
    if keys.get("remove_unused_columns") is not False:
        found.append("remove_unused_columns: Axolotl refuses KTO unless it is false")
    if keys.get("micro_batch_size") in (None, 1):  # Axolotl's default is 1
        found.append("micro_batch_size: KTO pairs each prompt with another answer of its batch; give 2 or more")
    return found


def _simpo_keys(keys: Mapping[str, Any]) -> list[str]:
    found = []
    if keys.get("simpo_gamma") is None:
        found.append("simpo_gamma is missing: the training would stop at its first step; SimPO's are about 1.0")
    if keys.get("cpo_alpha") is None:
        found.append("cpo_alpha is missing: the NLL would be added with weight 1; SimPO has 0.0")
    if keys.get("rl_beta") is None:
        found.append("rl_beta is missing: it would be TRL's 0.1; SimPO's are 2.0 and more")
    return found
