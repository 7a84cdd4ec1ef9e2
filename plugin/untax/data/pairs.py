"""Preference pairs for methods whose own dataset types read none: Axolotl prompt strategies named by ``type:``.

Axolotl reads pairs for DPO and SimPO alone. For ORPO it drops a ``type:`` with formats without a word and writes chat
answers with other ends, and for KTO it reads single answers only. These strategies take the very texts that Axolotl
makes of an entry for DPO.

The entry's ``type:`` holds all that decides the texts, written as a URL's query is, since nothing else gets there:
Axolotl drops the other keys of such entries, and its cache of prepared data is keyed by ``type:`` and neither by them
nor by the method, which is why each method has a name of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from typing import Any
from urllib.parse import parse_qsl, quote_plus

from untax.errors import UntaxError

PREFIX = "untax."
STRATEGIES = {"orpo": "orpo_pairs", "kto": "kto_pairs"}
"""Method -> its strategy, an attribute of the package ``untax``."""
FORMATS = (
    *("field_system", "field_prompt", "field_chosen", "field_rejected"),
    *("prompt_format", "chosen_format", "rejected_format"),
)
"""What a ``type:`` with formats consists of for DPO."""
FIELDS = ("field_messages", "field_chosen", "field_rejected")
"""The other keys of an entry that Axolotl's types for DPO read."""

Transform = Callable[..., dict[str, list[Any]]]
Strategy = Callable[..., tuple[Transform, dict[str, Any]]]


def is_strategy(name: str) -> bool:
    """Whether an attribute of ``untax`` is one of these strategies, as in ``kto_pairs?type=chatml%2Eargilla``."""
    return name.partition("?")[0] in STRATEGIES.values()


def pairs_type(method: str, entry: Mapping[str, Any]) -> str:
    """The ``type:`` with which ``method`` trains on the texts of an entry that is written for DPO.

    >>> pairs_type("kto", {"path": "rows.jsonl", "type": "chat_template.argilla_chat"})
    'untax.kto_pairs?type=chat_template%2Eargilla_chat'
    """
    own = entry.get("type")
    if isinstance(own, Mapping):
        chosen = {key: own[key] for key in FORMATS if own.get(key) is not None}
        # Without any format it still is a type with formats, and not a file of finished texts.
        query = chosen or {"field_prompt": "prompt"}
    else:
        query = {key: entry[key] for key in FIELDS if entry.get(key) is not None} if own else {}
        query = {**({"type": own} if own else {}), **query}
    written = "&".join(f"{key}={_quoted(str(value))}" for key, value in query.items())
    return PREFIX + STRATEGIES[method] + (f"?{written}" if written else "")


def _quoted(text: str) -> str:
    """Without a dot: Axolotl takes what stands behind the last one for the strategy's name."""
    return quote_plus(text).replace(".", "%2E")


def strategy(name: str) -> Strategy:
    """The strategy that a ``type:`` names behind ``untax.``.

    Raises:
        UntaxError: it is none, or its query has keys that no such type has.
    """
    method = {own: method for method, own in STRATEGIES.items()}[name.partition("?")[0]]
    try:
        query = dict(parse_qsl(name.partition("?")[2], keep_blank_values=True, strict_parsing="?" in name))
    except ValueError as error:
        raise _wrong(name, str(error)) from error
    unknown = set(query) - ({"type", *FIELDS} if "type" in query else set(FORMATS))
    if unknown:
        raise _wrong(name, f"unknown {', '.join(sorted(unknown))}")

    def load(cfg: Any, dataset_idx: int = 0, **_: Any) -> tuple[Transform, dict[str, Any]]:
        _refuse_order(cfg, method)
        return _rows(method, _dpo_transform(cfg, query)), {"batched": True, "remove_columns": "__all__"}

    return load


def _wrong(name: str, why: str) -> UntaxError:
    return UntaxError(
        f"A type of untax is wrong: {why}.",
        where=f"datasets: type: {PREFIX}{name}",
        fix="Let `untax recipe` write it, from an entry as Axolotl reads it for DPO.",
    )


def _refuse_order(cfg: Any, method: str) -> None:
    """KTO compares each answer with its neighbour's in the batch, which must not be to the same prompt."""
    if method == "kto" and (cfg.get("shuffle_merged_datasets") is False or cfg.get("curriculum_sampling")):
        raise UntaxError(
            "Without shuffling, the two answers of a pair stand side by side, and KTO would estimate its KL term "
            "from answers to the same prompt.",
            where="shuffle_merged_datasets, curriculum_sampling",
            fix="Leave both out.",
        )


def _dpo_transform(cfg: Any, query: dict[str, str]) -> Callable[..., dict[str, Any]]:
    """Axolotl's own function from a row to ``prompt``, ``chosen`` and ``rejected``."""
    if not query:
        return dict
    from axolotl.prompt_strategies.dpo import load
    from axolotl.utils.dict import DictDefault

    own = query.get("type")
    entry = {**{key: query[key] for key in FIELDS if key in query}, "type": own} if own else {"type": query}
    loaded = load(own or "user_defined.default", DictDefault({**cfg, "datasets": [entry]}), dataset_idx=0)
    if loaded is None:
        raise UntaxError(
            f"Axolotl has no type {own} for DPO; the reason is in its log above.",
            where="datasets: type",
            fix="Name one that reads pairs, such as chat_template.argilla_chat.",
        )
    return loaded[0] if isinstance(loaded, tuple) else loaded


def _rows(method: str, transform: Callable[..., dict[str, Any]]) -> Transform:
    """From a batch of columns to the columns that the method's trainer reads."""
    takes_tokenizer = transform is not dict and "tokenizer" in signature(transform).parameters
    made = _unpaired if method == "kto" else _paired

    def batch_transform(batch: Mapping[str, list[Any]], tokenizer: Any = None) -> dict[str, list[Any]]:
        extra = {"tokenizer": tokenizer} if takes_tokenizer else {}
        names = list(batch)
        rows = [
            row
            for values in zip(*(batch[name] for name in names), strict=True)
            for row in made(transform(dict(zip(names, values, strict=True)), **extra))
        ]
        return {key: [row[key] for row in rows] for key in (rows[0] if rows else ())}

    return batch_transform


def _paired(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {key: row[key] for key in ("prompt", "chosen", "rejected")}


def _unpaired(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A pair as a desirable and an undesirable answer."""
    for key, label in (("chosen", True), ("rejected", False)):
        yield {"prompt": row["prompt"], "completion": row[key], "label": label}
