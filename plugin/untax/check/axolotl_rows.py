"""Axolotl's own tokenisation of some rows, and its own chat template: what a training would make of them."""

from __future__ import annotations

import contextlib
import difflib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from untax.data.completion import TOKENIZER_KEYS
from untax.data.row_types import TYPES
from untax.errors import UntaxError

if TYPE_CHECKING:
    from datasets import Dataset

ANY_LENGTH = 1 << 20
"""A ``sequence_len`` that no row reaches, so that rows keep the length that they have."""

TEMPLATE_KEYS = ("chat_template", "chat_template_jinja", "default_system_message", "eot_tokens")
ROW_KEYS = (*TOKENIZER_KEYS, *TEMPLATE_KEYS, "train_on_inputs", "sequence_len", "rl", "roles_to_train", "train_on_eos")
"""Keys of a YAML, beside its entries, that decide what rows become."""
NO_TEMPLATE, NO_TYPE = "chat_template is null", "unhandled prompt tokenization strategy"
"""What Axolotl says of a tokenizer without a chat template, and of a ``type:`` that it does not know."""


class UnknownTypeError(ValueError):
    """A preference method has no such ``type:``."""


@dataclass(frozen=True)
class Tokens:
    """A training row.

    Attributes:
        length: tokens, of a pair those of the longer side.
        total: tokens that are computed: of a pair both sides, each with the prompt.
        start: tokens before the first that is trained on, of a pair the prompt's; equal to ``length`` if none is.
    """

    length: int
    total: int
    start: int


def load_axolotl_tokenizer(keys: Mapping[str, Any], base: str) -> Any:
    """The tokenizer as Axolotl sets it up.

    Args:
        keys: of the YAML.
        base: the base model's folder or hub id.

    Raises:
        UntaxError: it cannot be loaded.
    """
    from axolotl.loaders import load_tokenizer
    from axolotl.utils.dict import DictDefault

    given = {key: keys[key] for key in (*TOKENIZER_KEYS, *TEMPLATE_KEYS) if keys.get(key) is not None}
    with tempfile.TemporaryDirectory() as changed_tokens, quiet():
        full = {"tokenizer_config": base, **given, "base_model": base, "output_dir": changed_tokens}
        try:
            return load_tokenizer(DictDefault({**full, "base_model_config": base}))
        # transformers raises whatever it meets; the reason is named and kept.
        except Exception as error:
            raise UntaxError(f"The tokenizer cannot be loaded: {reason(error)}", where=base) from error


def chat_template(keys: Mapping[str, Any], entry: Mapping[str, Any], tokenizer: Any) -> str:
    """The template that an entry's dialogues are written with.

    Raises:
        UntaxError: there is none.
    """
    from axolotl.utils.chat_templates import get_chat_template_from_config
    from axolotl.utils.dict import DictDefault

    try:
        return str(get_chat_template_from_config(DictDefault(dict(keys)), dict(entry), tokenizer))
    except (ValueError, OSError) as error:
        if NO_TEMPLATE in str(error):
            raise _no_template("key chat_template") from error
        raise UntaxError(reason(error), where="key chat_template") from error


def _no_template(where: str) -> UntaxError:
    fix = "Name one: `untax recipe --chat-template zephyr`, or chat_template: under training in untax.yaml."
    return UntaxError("The base has no chat template, and this type writes dialogues with one", where=where, fix=fix)


def tokenised(
    rows: Dataset, numbers: Sequence[int], keys: Mapping[str, Any], entry: Mapping[str, Any], tokenizer: Any
) -> list[Tokens]:
    """What rows become, none cut off or left out for its length.

    Args:
        rows: some of a source's.
        numbers: theirs in the source.
        keys: of the YAML.
        entry: the dataset entry.
        tokenizer: as ``load_axolotl_tokenizer`` gives it.

    Raises:
        UntaxError: Axolotl cannot read a row; it is named.
    """
    make = _preference_rows if keys.get("rl") else _sft_rows
    with quiet():
        try:
            return make(rows, keys, entry, tokenizer)
        # Strategies raise whatever a row makes them meet.
        except Exception as error:
            _refuse_of_all_rows(error, entry)
            for index, number in enumerate(numbers):
                try:
                    make(rows.select([index], keep_in_memory=True), keys, entry, tokenizer)
                except Exception as own:
                    raise _unreadable(own, f"row {number} of {entry['path']}") from own
            raise _unreadable(error, str(entry["path"])) from error


def _refuse_of_all_rows(error: Exception, entry: Mapping[str, Any]) -> None:
    """Raise what no single row is to blame for."""
    if NO_TEMPLATE in str(error):
        raise _no_template(str(entry["path"])) from error
    if isinstance(error, UnknownTypeError) or NO_TYPE in str(error):
        kind = str(entry.get("type"))
        close = difflib.get_close_matches(kind, TYPES, n=1)
        fix = f"Did you mean '{close[0]}'?" if close else "Correct `type:`; docs/preference.md lists those of pairs."
        raise UntaxError(f"Axolotl has no type '{kind}' for this training", fix=fix) from error


def _unreadable(error: Exception, where: str) -> UntaxError:
    return UntaxError(f"Axolotl cannot read it: {type(error).__name__}: {reason(error)}", where=where)


def _config(keys: Mapping[str, Any], entry: Mapping[str, Any], length: int) -> Any:
    from axolotl.utils.dict import DictDefault

    given = {key: keys[key] for key in ROW_KEYS if keys.get(key) is not None}
    return DictDefault({**given, "sequence_len": length, "datasets": [dict(entry)]})


def _sft_rows(rows: Dataset, keys: Mapping[str, Any], entry: Mapping[str, Any], tokenizer: Any) -> list[Tokens]:
    from axolotl.utils.data.wrappers import get_dataset_wrapper

    kind = entry.get("type")
    base, _, style = kind.partition(":") if isinstance(kind, str) else (None, "", "")
    # Plain text is cut into rows of this length and not left out.
    cut = isinstance(kind, str) and kind.split(".")[0].split(":")[0] in ("completion", "pretrain")
    cfg = _config(keys, entry, int(keys.get("sequence_len") or 512) if cut else ANY_LENGTH)
    cfg.dataset_keep_in_memory = True
    made, _ = get_dataset_wrapper(
        dataset_config=cfg.datasets[0],
        tokenizer=tokenizer,
        cfg=cfg,
        dataset_base_type=base,
        dataset=rows,
        dataset_prompt_style=style or None,
    )
    return [_trained(len(row["input_ids"]), row.get("labels")) for row in made]


def _trained(length: int, labels: Sequence[int] | None) -> Tokens:
    start = 0 if labels is None else next((index for index, label in enumerate(labels) if label != -100), length)
    return Tokens(length, length, start)


def _preference_rows(rows: Dataset, keys: Mapping[str, Any], entry: Mapping[str, Any], tokenizer: Any) -> list[Tokens]:
    """As Axolotl measures pairs when it leaves out long ones: prompt and answer without special tokens."""
    made = _mapped(rows, _config(keys, entry, ANY_LENGTH), tokenizer)

    def count(row: Mapping[str, Any], column: str) -> int:
        if not row.get(column):
            raise ValueError(f"the {column} is empty")
        return len(tokenizer(row[column], add_special_tokens=False)["input_ids"])

    answers = ("completion",) if keys["rl"] == "kto" else ("chosen", "rejected")
    found = []
    for row in made:
        prompt = count(row, "prompt")
        sides = [prompt + count(row, answer) for answer in answers]
        found.append(Tokens(max(sides), sum(sides), prompt))
    return found


def _mapped(rows: Dataset, cfg: Any, tokenizer: Any) -> Dataset:
    from axolotl.prompt_strategies.dpo import load as load_dpo
    from axolotl.prompt_strategies.kto import load as load_kto
    from axolotl.prompt_strategies.orpo import load as load_orpo
    from axolotl.utils.data.rl import _map_dataset
    from axolotl.utils.dict import DictDefault

    kind = cfg.datasets[0]["type"]
    if not kind:
        return rows
    name = "user_defined.default" if isinstance(kind, DictDefault) else kind
    load = {"orpo": load_orpo, "kto": load_kto}.get(str(cfg.rl), load_dpo)
    strategy = load(name, cfg, dataset_idx=0)
    if strategy is None:
        raise UnknownTypeError(name)
    strategy, options = strategy if isinstance(strategy, tuple) else (strategy, {})
    removed = options.get("remove_columns")
    if removed is not None:
        there = rows.column_names
        options = {**options, "remove_columns": there if removed == "__all__" else [c for c in removed if c in there]}
    return _map_dataset(cfg, rows, strategy, tokenizer, **options)


def reason(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and log lines of every row."""
    import datasets

    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        if not shown:
            datasets.enable_progress_bars()
