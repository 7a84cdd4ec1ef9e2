"""The model that a Fisher is of: a base, or a base with a LoRA adapter's delta added to it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from untax.adapters.header import read_header
from untax.adapters.stored import ADAPTER_FILES
from untax.data.parallel import apart
from untax.errors import UntaxError
from untax.manifest import digest_files, digest_model

INDEX = "model.safetensors.index.json"
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Model:
    """A model as it was named.

    Attributes:
        name: the base: a folder, or a hub id.
        folder: where the base's files lie.
        revision: of a hub id.
        adapter: the folder of a LoRA adapter whose delta is added, or None.
    """

    name: str
    folder: Path
    revision: str | None = None
    adapter: Path | None = None

    def identity(self) -> dict[str, str]:
        """The digest of the base's weights, or ``hub:<id>@<commit>``; and that of the adapter's files."""
        if Path(self.name).is_dir():
            found = {"base": digest_model(self.name)}
        else:
            found = {"base": f"hub:{self.name}@{self.folder.name}"}
        return found if self.adapter is None else {**found, "adapter": digest_files(self.adapter, ADAPTER_FILES)}


def checkpoint_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a model folder's safetensors files, by name.

    Raises:
        UntaxError: a file is missing, cut off, or no safetensors file.
    """
    index = folder / INDEX
    files = [folder / "model.safetensors"]
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UntaxError(
                f"The weights' index cannot be read: {error!r}.", where=index, fix="Download the model again."
            ) from error
        files = [folder / name for name in sorted(names)]
    return {name: tensor.shape for file in files for name, tensor in read_header(file).items()}


def load_tokenizer(model: Model, *, trust_remote_code: bool) -> Any:
    """The base's tokenizer.

    Raises:
        UntaxError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    return _loaded(
        lambda: AutoTokenizer.from_pretrained(model.name, revision=model.revision, trust_remote_code=trust_remote_code),
        "tokenizer",
        model,
        "Put the model's tokenizer files beside its weights.",
    )


def load_network(model: Model, *, dtype: str, device: str, trust_remote_code: bool) -> Any:
    """The causal language model, frozen and without dropout; an adapter's delta is added in float32.

    Raises:
        UntaxError: it cannot be loaded, lacks tensors, is quantized, or PEFT does not apply the whole adapter.
    """
    import torch
    from transformers import AutoModelForCausalLM

    network, report = _loaded(
        lambda: AutoModelForCausalLM.from_pretrained(
            model.name,
            revision=model.revision,
            dtype=torch.float32 if model.adapter else getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        ),
        "model",
        model,
        "See the reason above.",
    )
    lacking = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if lacking:
        raise UntaxError(
            f"{len(lacking)} tensors are missing from the model's weights or have another shape: {lacking[0]}, ...",
            where=model.name,
            fix="Make or download the model again.",
        )
    if getattr(network, "quantization_method", None) is not None:
        raise UntaxError(
            "The model is quantized: its weights have no gradients.", where=model.name, fix="Name the original model."
        )
    if model.adapter is not None:
        network = _with_adapter(network, model.adapter)
    return network.to(device, getattr(torch, dtype)).eval().requires_grad_(False)


def _with_adapter(network: Any, adapter: Path) -> Any:
    import peft

    try:
        adapted = peft.PeftModel(network, peft.PeftConfig.from_pretrained(adapter))
        result = adapted.load_adapter(adapter, "default")
    except Exception as error:  # PEFT and torch raise whatever they meet
        raise UntaxError(
            f"PEFT cannot load the adapter: {_reason(error)}", where=adapter, fix="Name the base it was trained on."
        ) from error
    for keys, what in ((result.unexpected_keys, "would drop"), (result.missing_keys, "misses")):
        if keys:
            raise UntaxError(
                f"PEFT {what} this key of the adapter: {keys[0]}.",
                where=adapter,
                fix="Name the base it was trained on.",
            )
    return adapted.merge_and_unload()


def check_device(name: str) -> None:
    """``place`` without torch in this process, which has others to start first.

    Raises:
        UntaxError: there is no GPU.
    """
    if name == "cuda":
        place(name) if "torch" in sys.modules else apart(place, name)


def place(name: str) -> str:
    """``cpu`` or ``cuda`` for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UntaxError: there is no GPU.
    """
    import torch

    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise UntaxError("There is no GPU that torch can use.", where="--device", fix="Use --device cpu.")
    return "cuda"


def _loaded(load: Callable[[], Loaded], what: str, model: Model, fix: str) -> Loaded:
    try:
        return load()
    except Exception as error:  # transformers, safetensors and the hub each raise their own
        raise UntaxError(f"The {what} cannot be loaded: {_reason(error)}", where=model.name, fix=fix) from error


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
