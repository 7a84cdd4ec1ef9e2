"""Is this a model that can be scored? Found out before anything heavy is imported or run."""

from __future__ import annotations

import json
import re
from pathlib import Path

from untax.errors import UntaxError

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def model_name(model: str) -> str:
    """What results call the model: its folder's name, or its hub id with the slash made a double underscore.

    Axolotl's ``merge-lora`` writes to ``<output_dir>/merged``: such a model is called after its parent.
    """
    if not Path(model).exists() and HUB_ID.fullmatch(model):
        return model.replace("/", "__")
    path = Path(model).resolve()
    return path.parent.name if path.name == "merged" else path.name


def results_folder(model: str, root: Path | None = None) -> Path:
    """Where a model's results go: ``<run>/results/<name>`` for ``<run>/outputs/<name>``, else ``results/<name>`` here.

    Args:
        model: a model folder or hub id.
        root: the folder to use in place of ``results``.
    """
    name = model_name(model)
    if root is not None:
        return root / name
    path = Path(model).resolve()
    outputs = path.parent.parent if path.name == "merged" else path.parent
    return outputs.parent / "results" / name if outputs.name == "outputs" and path.is_dir() else Path("results") / name


def check_model(model: str) -> None:
    """Refuse what lm-eval would refuse late or without a reason.

    Raises:
        UntaxError: there is no such folder; it is an adapter; its config or weights are missing or cut off.
    """
    path = Path(model)
    if not path.exists() and HUB_ID.fullmatch(model) and not path.parent.exists():
        return
    if not path.is_dir():
        raise UntaxError("There is no model folder here.", where=model, fix="Name a folder with a config.json.")
    if (path / "adapter_config.json").is_file() and not any(path.glob("model*.safetensors")):
        raise UntaxError(
            "This is an adapter, not a model.",
            where=path,
            fix="Merge it into its base first (`untax merge`, or `axolotl merge-lora`), then score the merged model.",
        )
    if not (path / "config.json").is_file():
        raise UntaxError("The model has no config.json.", where=path, fix="Name the folder of a Hugging Face model.")
    for file in _weight_files(path):
        _check_weights(file)


def _weight_files(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UntaxError(f"The weights' index cannot be read: {error!r}.", where=index, fix=_AGAIN) from error
        return [path / name for name in sorted(names)]
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise UntaxError(
            "The model has no .safetensors weights.",
            where=path,
            fix="untax loads safetensors only: save the model with safe_serialization.",
        )
    return files


def _check_weights(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as weights:
            empty = not list(weights.keys())
    except (SafetensorError, OSError) as error:
        raise UntaxError(f"The weights cannot be read: {error}.", where=file, fix=_AGAIN) from error
    if empty:
        raise UntaxError("The weights' file holds no tensor.", where=file, fix=_AGAIN)


_AGAIN = "The file is missing or cut off: make or download the model again."
