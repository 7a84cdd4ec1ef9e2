"""A model folder on disk, read tensor by tensor and in chunks: the base that an adapter was trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax.adapters.blocks import row_blocks
from untax.adapters.header import TensorInfo, read_header
from untax.adapters.rows import read_rows
from untax.adapters.statistics import FLOATING
from untax.errors import UntaxError
from untax.manifest import digest_model

if TYPE_CHECKING:
    import torch

INDEX_NAME = "model.safetensors.index.json"
WEIGHTS_NAME = "model.safetensors"
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_AGAIN = "Copy or download the model again."


class StoredModel:
    """A model folder with safetensors weights, in one file or in shards; values are read when they are asked for.

    Attributes:
        folder: the model's folder.
        config: the content of config.json.
        tensors: what the weights hold, by name.
    """

    def __init__(self, folder: Path):
        """Read the configuration and the headers of the weights.

        Raises:
            UntaxError: the folder is no model, its weights are pickled, or a shard is missing or cut off.
        """
        self.folder = folder
        self.config = _read_json(folder / "config.json")
        self.tensors: dict[str, TensorInfo] = {}
        listed = _listed(folder)
        for file in _weight_files(folder, listed):
            # As every reader does: where two shards have a tensor, that of the shard which the index names.
            own = {name: info for name, info in read_header(file).items() if listed.get(name, file.name) == file.name}
            self.tensors.update(own)
        lost = sorted(listed.keys() - self.tensors.keys())
        if lost:
            raise UntaxError(
                f"{listed[lost[0]]} has no {lost[0]}, though the index says so.", where=folder / INDEX_NAME, fix=_AGAIN
            )
        self._rms: dict[TensorInfo, float] = {}

    @cached_property
    def identity(self) -> str:
        """``hub:<id>@<commit>`` for a snapshot in the hub's cache, else the digest of weights and configuration."""
        place = self.folder.absolute()
        repository = place.parent.parent.name
        if place.parent.name == "snapshots" and repository.startswith("models--"):
            return f"hub:{repository.removeprefix('models--').replace('--', '/')}@{place.name}"
        return digest_model(self.folder)

    def find(self, name: str) -> TensorInfo | None:
        """The tensor of a weight of the loaded model, or None.

        Checkpoints may leave out what the model's class puts in front (GPT-2's have ``h.0.`` for ``transformer.h.0.``),
        and an output layer that is tied to the embedding.
        """
        for spelled in (name, name.partition(".")[2]):
            if spelled in self.tensors:
                return self.tensors[spelled]
        if name == "lm_head.weight" and self.config.get("tie_word_embeddings") is not False:
            return self.embedding
        return None

    @property
    def embedding(self) -> TensorInfo | None:
        """The input embedding, or None when it cannot be told which tensor that is."""
        found = [tensor for name, tensor in self.tensors.items() if name.endswith(_EMBEDDINGS)]
        return found[0] if len(found) == 1 else None

    def quantised(self, names: Iterable[str]) -> str | None:
        """Why these weights have no values to compare with: the first that is stored as other than real numbers."""
        for name in names:
            tensor = self.find(name)
            if tensor is not None and tensor.dtype not in FLOATING:
                return f"{name} is stored as {tensor.dtype}"
            if tensor is None and self.config.get("quantization_config"):
                return f"there is no {name}, but a quantization_config"
        return None

    def rms(self, tensor: TensorInfo) -> float:
        """Root mean square of a tensor's elements in float64; computed once.

        Raises:
            UntaxError: it holds NaN or infinity.
        """
        if tensor not in self._rms:
            squares = math.fsum(_sum_of_squares(chunk) for chunk in chunks(tensor))
            if not math.isfinite(squares):
                name = next(name for name, other in self.tensors.items() if other == tensor)
                raise UntaxError(f"The base has NaN or infinity in {name}.", where=tensor.file, fix=_AGAIN)
            self._rms[tensor] = math.sqrt(squares / max(1, tensor.elements))
        return self._rms[tensor]


def local_folder(name: str, revision: str | None = None) -> Path | None:
    """Where a model lies on this machine: the folder itself, or its snapshot in the hub's cache; nothing is fetched.

    Args:
        name: a folder or hub id.
        revision: of the hub id; ``main`` by default.

    Returns:
        None where there is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def own_base(config: Mapping[str, Any], opened: dict[Path, StoredModel]) -> tuple[StoredModel | None, str | None]:
    """The base that an adapter's configuration names, if it is whole and on this machine.

    Args:
        config: the content of adapter_config.json.
        opened: models that were opened already, by folder; added to.

    Returns:
        (the base, None), or (None, why it is not at hand).
    """
    name = config.get("base_model_name_or_path")
    if not name:
        return None, "the adapter does not say what its base is"
    if config.get("layer_replication"):
        return None, f"the adapter's layers are not those of {name}, but copies of them (layer_replication)"
    folder = local_folder(str(name), config.get("revision"))
    if folder is None:
        return None, f"its base {name} is neither a folder here nor in the hub's cache"
    try:
        if folder not in opened:
            opened[folder] = StoredModel(folder)
        return opened[folder], None
    except UntaxError as error:
        return None, f"its base {name} cannot be read ({error.problem.removesuffix('.')})"


def chunks(tensor: TensorInfo) -> Iterator[torch.Tensor]:
    """The values of a floating tensor in order, flat, in fp32 (F64: fp64), some rows at a time.

    Raises:
        UntaxError: the file was cut off meanwhile.
    """
    rows, *columns = tensor.shape or (1,)
    for block in row_blocks(rows if tensor.elements else 0, math.prod(columns)):
        values = read_rows(tensor, block).flatten()
        yield values if tensor.dtype == "F64" else values.float()


def same_values(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors of real numbers are equal, element by element."""
    comparable = one.shape == other.shape and {one.dtype, other.dtype} <= {*FLOATING}
    return comparable and all(
        bool((mine == theirs).all()) for mine, theirs in zip(chunks(one), chunks(other), strict=True)
    )


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as messages have it: ``32 x 64``."""
    return " x ".join(map(str, shape)) or "a single number"


def _sum_of_squares(chunk: torch.Tensor) -> float:
    import torch

    exact = chunk.double()
    return float(torch.dot(exact, exact))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UntaxError(
            f"The folder is no model: it has no {path.name}.",
            where=path.parent,
            fix="Name a folder in Hugging Face's format.",
        ) from error
    except (OSError, ValueError) as error:
        raise UntaxError(f"The file cannot be read: {error}.", where=path, fix=_AGAIN) from error
    if not isinstance(content, dict):
        raise UntaxError("The file is no mapping of keys.", where=path, fix=_AGAIN)
    return content


def _listed(folder: Path) -> dict[str, str]:
    """The names of the shards by those of the tensors; empty where there is no index."""
    index = folder / INDEX_NAME
    if not index.is_file():
        return {}
    listed = _read_json(index).get("weight_map")
    if not listed or not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise UntaxError("The index of the shards has no weight_map.", where=index, fix=_AGAIN)
    for name in listed.values():
        if name != Path(name).name:
            raise UntaxError(
                f"The index names a shard elsewhere: {name}.", where=index, fix="Put all shards beside the index."
            )
    return listed


def _weight_files(folder: Path, listed: Mapping[str, str]) -> list[Path]:
    if listed:
        names = sorted(set(listed.values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UntaxError(f"The model is incomplete: {', '.join(missing)} is missing.", where=folder, fix=_AGAIN)
        return [folder / name for name in names]
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    if any(folder.glob("pytorch_model*.bin")):
        raise UntaxError(
            "The model's weights are pickled (.bin), and a pickle can run any code.",
            where=folder,
            fix="Save the model again as safetensors.",
        )
    raise UntaxError(
        f"The folder has no {WEIGHTS_NAME}.", where=folder, fix="Name a folder with a model's weights in it."
    )
