"""An Axolotl YAML as text: purpose, prerequisite and launch command on top, origins beside the values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import yaml

GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("untax", ("plugins", "disperse_", "delta_")),
    ("Model", ("base_model", "tokenizer_", "chat_template", "chat_template_", "special_tokens")),
    ("Data", ("datasets", "test_datasets", "val_set_size", "sequence_len", "train_on_inputs", "dataset_")),
    ("Adapter", ("adapter", "lora_", "peft_")),
    ("Preference optimisation", ("rl", "rl_", "dpo_", "orpo_")),
    ("Training", ("",)),
)


def render(
    keys: dict[str, Any], *, purpose: list[str], needs: str, command: str, origin: Callable[[str, Any], str]
) -> str:
    """The YAML text.

    Args:
        keys: Axolotl's keys.
        purpose: what the file is for, one line each.
        needs: what must have run before.
        command: how to launch it.
        origin: called with a key and its value; says where the value comes from.
    """
    lines = heading(purpose, needs, command)
    left = dict(keys)
    for title, prefixes in GROUPS:
        chosen = list(dict.fromkeys(key for prefix in prefixes for key in left if _belongs(key, prefix)))
        if chosen:
            lines += ["", f"# {title}"]
        for key in chosen:
            value = left.pop(key)
            lines += _entry(key, value, origin(key, value))
    return "\n".join(lines) + "\n"


def heading(purpose: Sequence[str], needs: str, command: str) -> list[str]:
    """The comments on top of a YAML, a line each whatever names and values are in them."""
    lines = [*purpose, f"Needs: {needs}", f"Run:   {command}"]
    return ["# " + "".join(sign if sign.isprintable() else " " for sign in line) for line in lines]


def _belongs(key: str, prefix: str) -> bool:
    return key == prefix or ((not prefix or prefix.endswith("_")) and key.startswith(prefix))


def _entry(key: str, value: Any, comment: str) -> list[str]:
    lines = dump({key: value}).splitlines()
    if comment:
        lines[0] += f"  # {comment}"
    return lines


class _Dumper(yaml.SafeDumper):
    """Indented lists and literal blocks, as people write them."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    style = "|" if "\n" in value and not any(line.endswith(" ") for line in value.split("\n")) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _number(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    """0.0001 rather than 1e-04: YAML 1.1 reads ``1e-4`` as text, and people copy from these files."""
    text = f"{value:.12f}".rstrip("0") if value and 1e-9 < abs(value) < 1e9 else repr(value)
    if not math.isclose(float(text), value, rel_tol=1e-11) and math.isfinite(value):
        text = f"{Decimal(repr(value)):f}"
    return dumper.represent_scalar("tag:yaml.org,2002:float", text + "0" if text.endswith(".") else text)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(float, _number)


def dump(value: Any) -> str:
    """YAML text of plain values in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
