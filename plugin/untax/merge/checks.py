"""What must hold of the inputs before a merge begins. Reads headers and adapters; needs neither torch nor mergekit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from untax.adapters.header import TensorInfo, read_header
from untax.adapters.stored import ADAPTER_FILES, StoredAdapter
from untax.errors import UntaxError
from untax.manifest import digest_files, digest_model
from untax.merge.references import Reference
from untax.merge.same_base import check_base

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
_INDEX = "model.safetensors.index.json"


def check_inputs(references: Iterable[Reference], *, same_base: bool = True) -> None:
    """Check every model and adapter, and that each adapter belongs to the base it is added to.

    Args:
        references: the inputs.
        same_base: False accepts an adapter that was trained on another base, if its shapes fit.

    Raises:
        UntaxError: naming everything that is wrong, not only the first thing.
    """
    problems: list[UntaxError] = []
    for reference in references:
        collect(problems, _check_base_model, reference)
        if reference.adapter is not None:
            collect(problems, _check_adapter, reference, same_base)
    raise_all(problems)


def collect(problems: list[UntaxError], check: Callable[..., object], *arguments: Any, **options: Any) -> None:
    """Call a check and keep its error, once."""
    try:
        check(*arguments, **options)
    except UntaxError as error:
        if str(error) not in map(str, problems):
            problems.append(error)


def raise_all(problems: list[UntaxError]) -> None:
    """Raise the one problem, or one error that lists them all; nothing when there is none."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise UntaxError(f"{len(problems)} things are wrong with the inputs of this merge:\n{listed}")


def check_model(folder: Path) -> dict[str, TensorInfo]:
    """The tensors of a model folder, by name.

    Raises:
        UntaxError: it is no model, its weights are pickled, or a shard is missing or cut off.
    """
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise UntaxError(
            "The folder is an adapter, not a model.", where=folder, fix="Write `base+adapter` in the YAML."
        )
    if not (folder / "config.json").is_file():
        raise UntaxError(
            "The folder is no model: it has no config.json.",
            where=folder,
            fix="Name a folder in Hugging Face's format.",
        )
    shards = _shards(folder)
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        tensors.update(read_header(shard))
    return tensors


def _shards(folder: Path) -> list[Path]:
    if (folder / _INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UntaxError(
                f"The index of the shards cannot be read: {error}.",
                where=folder / _INDEX,
                fix="Copy or download the model again.",
            ) from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UntaxError(
                f"The model is incomplete: {', '.join(missing)} is missing.",
                where=folder,
                fix="Copy or download the model again.",
            )
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if any(folder.glob("pytorch_model*.bin")):
        raise UntaxError(
            "The model's weights are pickled (.bin), and a pickle can run any code.",
            where=folder,
            fix="Save the model again as safetensors.",
        )
    raise UntaxError(
        "The folder has no model.safetensors.",
        where=folder,
        fix="Name a folder with a model's weights; an adapter is written base+adapter.",
    )


def _check_base_model(reference: Reference) -> None:
    check_model(reference.base.folder)


def _check_adapter(reference: Reference, same_base: bool) -> None:
    assert reference.adapter is not None
    adapter = StoredAdapter(reference.adapter.folder)
    check_fits(adapter, check_model(reference.base.folder))
    if same_base:
        check_base(adapter, reference.base)
    bad = adapter.nonfinite()
    if bad:
        raise UntaxError(
            f"The adapter has NaN or infinity in {bad}.",
            where=adapter.folder,
            fix="Its training diverged: train it again with a smaller learning rate.",
        )


def check_fits(adapter: StoredAdapter, base: dict[str, TensorInfo]) -> None:
    """Compare the shape of every delta with the tensor it changes, where the base has one of that name.

    Raises:
        UntaxError: naming the tensor and both shapes.
    """
    for layer in adapter.layers:
        info = base.get(layer.tensor)
        delta = (adapter.tensors[layer.up].shape[0], adapter.tensors[layer.down].shape[1])
        wanted = delta[::-1] if layer.transposed else delta
        if info is not None and info.shape != wanted and len(adapter.tensors[layer.down].shape) == 2:
            raise UntaxError(
                f"The adapter does not fit the base: {layer.tensor} is {_by(info.shape)} there and {_by(wanted)} here.",
                where=adapter.folder,
                fix="Merge it with the base it was trained on.",
            )


def has_tokenizer(folder: Path) -> bool:
    """Whether a model folder has a tokenizer in it."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def input_digests(references: Iterable[Reference]) -> dict[str, str]:
    """The identity of every model and adapter, by its path as the YAML has it."""
    digests: dict[str, str] = {}
    for reference in references:
        digests[reference.base.path] = digest_model(reference.base.path)
        if reference.adapter is not None:
            digests[reference.adapter.path] = digest_files(reference.adapter.folder, ADAPTER_FILES)
    return digests


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
