"""The models that a mergekit YAML names: base or base+adapter, found on this machine before mergekit is imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from untax.adapters.base import local_folder
from untax.errors import UntaxError

_TOKENIZER_KEYS = ("tokenizer_source", "source")
_MODEL_KEYS = ("model", "base_model", "lora", "path", *_TOKENIZER_KEYS)


@dataclass(frozen=True)
class Source:
    """A folder or hub id, as written: ``path`` or ``path@revision``."""

    path: str
    revision: str | None = None

    @cached_property
    def folder(self) -> Path:
        """Where its files lie; a hub id is fetched into the hub's cache if it is not there yet.

        Raises:
            UntaxError: there is no such folder, and no such model on the hub that can be reached.
        """
        path = Path(self.path)
        if path.is_dir():
            return path
        if path.exists():
            raise UntaxError("The model is a file, not a folder.", where=self.path, fix="Name the folder it lies in.")
        if (path.parent.is_dir() and str(path.parent) != ".") or not _is_hub_id(self.path):
            raise UntaxError(
                "There is no such model folder.",
                where=self.path,
                fix="Check the path (relative to the present folder), or make the model first.",
            )
        return _from_hub(self)

    @property
    def text(self) -> str:
        """As the YAML has it."""
        return self.path if self.revision is None else f"{self.path}@{self.revision}"

    @property
    def place(self) -> Path:
        """The folder, however it is spelled or linked to."""
        return self.folder.resolve()


@dataclass(frozen=True)
class Reference:
    """One input of a merge.

    Attributes:
        text: as the YAML has it.
        base: the model.
        adapter: the LoRA adapter added to it, or None.
    """

    text: str
    base: Source
    adapter: Source | None = None


def read_references(config: dict[str, Any], *, where: object) -> list[Reference]:
    """Every model of a mergekit configuration, once, in the order of the file; ``base_model`` comes first.

    Raises:
        UntaxError: a reference that mergekit would not read as it was meant.
    """
    found = [read_reference(value, where=where) for value in _values(config)]
    return list(dict.fromkeys(found))


def read_reference(value: Any, *, where: object) -> Reference:
    """A reference as mergekit reads it: ``model[@revision][+adapter[@revision]]``, or a mapping of these parts.

    Raises:
        UntaxError: see ``read_references``.
    """
    if isinstance(value, dict):
        adapter = value.get("lora")
        return Reference(str(value), _source(value.get("model"), where), _source(adapter, where) if adapter else None)
    if not isinstance(value, str) or not value:
        raise UntaxError(
            f"A model must be a path, but this is {value!r}.",
            where=where,
            fix="Write `model: folder` or `model: base+adapter`.",
        )
    _refuse_separators(value, where)
    base, _, adapter = value.partition("+")
    return Reference(value, _source(base, where), _source(adapter, where) if adapter else None)


def _refuse_separators(value: str, where: object) -> None:
    if ("+" in value and Path(value).exists()) or value.count("+") > 1:
        raise UntaxError(
            f"mergekit reads '+' as base+adapter, so it cannot read the path {value}.",
            where=where,
            fix="Rename the folder, or link to it by a name without '+'.",
        )
    for part in value.split("+"):
        if ("@" in part and Path(part).exists()) or part.count("@") > 1:
            raise UntaxError(
                f"mergekit reads '@' as path@revision, so it cannot read the path {part}.",
                where=where,
                fix="Rename the folder, or link to it by a name without '@'.",
            )


def _source(value: Any, where: object) -> Source:
    if isinstance(value, dict):
        return Source(str(value.get("path")), value.get("revision"))
    if not isinstance(value, str) or not value:
        raise UntaxError(
            f"A model must be a path, but this is {value!r}.",
            where=where,
            fix="Write `model: folder` or `model: base+adapter`.",
        )
    path, _, revision = value.partition("@")
    return Source(path, revision or None)


def _values(config: dict[str, Any]) -> Iterator[Any]:
    if config.get("base_model"):
        yield config["base_model"]
    for key in ("models", "slices", "modules"):
        yield from _models_in(config.get(key))


def _models_in(node: Any) -> Iterator[Any]:
    if isinstance(node, list):
        for item in node:
            yield from _models_in(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("model", "base_model") and value:
                yield value
            elif key != "parameters":
                yield from _models_in(value)


def with_plain_folders(node: Any, key: str = "") -> Any:
    """A configuration whose relative folders begin with ``./``, and whose hub ids are the folders of the hub's cache.

    mergekit asks the hub about every ``a/b``, though it is a folder here or was fetched, and fails without a network.
    """
    if isinstance(node, dict):
        return {
            name: value if name == "parameters" else with_plain_folders(value, name) for name, value in node.items()
        }
    if isinstance(node, list):
        return [with_plain_folders(item, key) for item in node]
    if not isinstance(node, str) or key not in _MODEL_KEYS or (key in _TOKENIZER_KEYS and node in ("union", "base")):
        return node
    return "+".join(map(_plain_folder, node.split("+")))


def _plain_folder(part: str) -> str:
    path, _, revision = part.partition("@")
    if Path(path).is_dir():
        return part if part[:1] in "./~" else f"./{part}"
    found = local_folder(path, revision or None)
    return part if found is None else str(found)


def _is_hub_id(name: str) -> bool:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _from_hub(source: Source) -> Path:
    from huggingface_hub import snapshot_download

    # What mergekit itself fetches, and what an adapter or a tokenizer consists of.
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(source.path, revision=source.revision, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises OSError, ValueError and HTTP errors alike
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UntaxError(
            f"There is no such folder, and the hub gives no such model: {reason}",
            where=source.path,
            fix="Check the path; if it is a hub id, check the network or fetch the model first.",
        ) from error
