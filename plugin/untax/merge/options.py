"""mergekit-yaml's options, parsed without importing mergekit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from untax.errors import UntaxError

DEFAULT_SEED = 42
"""The seed of methods that drop at random (dare_*, della_*), unless --random-seed says another."""

# A test compares these with mergekit's own.
FLAGS = {
    "allow_crimes": False,
    "unsafe_truncate_embeddings": False,
    "cuda": False,
    "low_cpu_memory": False,
    "copy_tokenizer": True,
    "clone_tensors": False,
    "trust_remote_code": False,
    "lazy_unpickle": False,
    "write_model_card": True,
    "safe_serialization": True,
    "quiet": False,
    "read_to_gpu": False,
    "multi_gpu": False,
    "async_write": False,
}
VALUES: dict[str, type] = {
    "transformers_cache": str,
    "lora_merge_cache": str,
    "lora_merge_dtype": str,
    "device": str,
    "out_shard_size": str,
    "random_seed": int,
    "num_threads": int,
    "write_threads": int,
}
SHORT = {"num_threads": "-j"}
# Options that change how a merge is made and shown, not what comes out.
_WITHOUT_EFFECT = (
    *("quiet", "verbosity", "lora_merge_cache", "lora_merge_dtype", "transformers_cache", "low_cpu_memory"),
    *("num_threads", "write_threads", "async_write", "read_to_gpu", "multi_gpu", "gpu_rich", "lazy_unpickle"),
    *("clone_tensors", "write_model_card"),
)


@dataclass(frozen=True)
class Options:
    """What was asked for on the command line.

    Attributes:
        given: the options as they were given, for mergekit's own parser.
        values: every option by its name, with its default.
    """

    given: tuple[str, ...]
    values: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def seed(self) -> int:
        """Of random methods."""
        seed = self.values["random_seed"]
        return DEFAULT_SEED if seed is None else int(seed)

    @property
    def on_gpu(self) -> bool:
        """Whether arithmetic on an accelerator was asked for."""
        return bool(self["cuda"] or self["gpu_rich"]) or self["device"] not in (None, "cpu", "auto")

    @property
    def shard_bytes(self) -> int | None:
        """Bytes of an output file at most; None when nothing was said."""
        return None if self["out_shard_size"] is None else _size(self["out_shard_size"])

    def identity(self) -> list[str]:
        """Those that decide what comes out, in one spelling."""
        defaults = {**_defaults(), "random_seed": DEFAULT_SEED}
        meant = {"random_seed": self.seed, "out_shard_size": self.shard_bytes, "device": self["device"]}
        if not self.on_gpu:
            meant["device"] = None
        changed = {name: value for name, value in {**self.values, **meant}.items() if value != defaults[name]}
        return sorted(f"{name}={value}" for name, value in changed.items() if name not in _WITHOUT_EFFECT)


def read_options(arguments: Sequence[str]) -> Options:
    """Parse mergekit-yaml's options.

    Raises:
        click.ClickException: an option that mergekit does not have, or a value of another kind.
        UntaxError: pickled weights are asked for, or a size that is none.
    """
    import click

    command = click.Command("untax merge", add_help_option=False, callback=lambda **values: values, params=_options())
    values = command.main(args=list(arguments), prog_name="untax merge", standalone_mode=False)
    if not values["safe_serialization"]:
        raise UntaxError("untax writes no pickled weights.", where="--no-safe-serialization", fix="Leave it out.")
    options = Options(tuple(arguments), values)
    _ = options.shard_bytes
    return options


def _options() -> list[Any]:
    import click

    flags = [
        click.Option([f"--{_dashed(name)}/--no-{_dashed(name)}", name], default=default)
        for name, default in FLAGS.items()
    ]
    valued = [
        click.Option([f"--{_dashed(name)}", *([SHORT[name]] if name in SHORT else []), name], type=kind)
        for name, kind in VALUES.items()
    ]
    counted = click.Option(["-v", "verbosity"], count=True)
    return [*flags, *valued, counted, click.Option(["--gpu-rich", "gpu_rich"], is_flag=True)]


def _defaults() -> dict[str, Any]:
    return {**FLAGS, **dict.fromkeys(VALUES), "verbosity": 0, "gpu_rich": False}


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _size(text: str) -> int:
    """mergekit's sizes: 5B, 500M, 10K, or plain bytes."""
    units = {"k": 10**3, "m": 10**6, "b": 10**9}
    number, unit = (text[:-1], units[text[-1].lower()]) if text[-1:].lower() in units else (text, 1)
    if not number.isdecimal() or int(number) < 1:
        raise UntaxError(
            f"The size {text!r} is none.", where="--out-shard-size", fix="Write bytes, or a number with K, M or B."
        )
    return int(number) * unit
