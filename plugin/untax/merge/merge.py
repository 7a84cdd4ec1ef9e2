"""One merge from YAML to model folder: checked, cached by content, published whole or not at all."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from untax.errors import UntaxError
from untax.manifest import digest_bytes, write_manifest
from untax.merge import checks, place
from untax.merge.references import Reference, read_references

_SCRATCH = ".scratch"
# Options that change how a merge is made and shown, not what comes out.
_WITHOUT_EFFECT = (
    *("--quiet", "--no-quiet", "-v", "--lora-merge-cache", "--transformers-cache"),
    *("--num-threads", "--write-threads", "--async-write", "--no-async-write"),
)


@dataclass(frozen=True)
class MergeConfig:
    """A mergekit YAML.

    Attributes:
        path: the file.
        text: its content.
        raw: its content, parsed.
        references: the models it names, in order.
    """

    path: Path
    text: str
    raw: dict[str, Any]
    references: list[Reference]


def read_merge_config(path: Path) -> MergeConfig:
    """Read a mergekit YAML, without mergekit.

    Raises:
        UntaxError: the file cannot be read or names no models.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        raw = yaml.safe_load(text)
    except FileNotFoundError as error:
        raise UntaxError("There is no such merge configuration.", where=path, fix="Check the path.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UntaxError(
            f"The merge configuration cannot be read: {error}.", where=path, fix="Mend the YAML."
        ) from error
    if not isinstance(raw, dict):
        raise UntaxError(
            "The merge configuration is not a mapping of keys.", where=path, fix="See mergekit's examples."
        )
    references = read_references(raw, where=path)
    if not references:
        raise UntaxError("The merge configuration names no models.", where=path, fix="List them under `models:`.")
    return MergeConfig(path, text, raw, references)


def merge(
    config_path: Path, out: Path, arguments: list[str], *, force: bool = False, say: Callable[[str], None] = print
) -> bool:
    """Merge the models that a mergekit YAML names into the folder ``out``.

    Args:
        config_path: the YAML.
        out: the folder to make.
        arguments: further options of mergekit-yaml, each as one string: ``--random-seed=3``, ``--cuda``.
        force: replace what ``out`` holds, once the merge is done.
        say: called with each sentence for the user.

    Returns:
        False when ``out`` holds this very merge already.

    Raises:
        UntaxError: an input, the configuration or the output folder is not as it must be; nothing was written.
    """
    started = time.time()
    config = read_merge_config(config_path)
    crimes = "--allow-crimes" in arguments
    checks.check_inputs(config.references, same_base=not crimes)
    identity = {
        "config": {"path": str(config.path), "digest": digest_bytes(config.text.encode())},
        "options": sorted(argument for argument in arguments if not argument.startswith(_WITHOUT_EFFECT)),
        "inputs": checks.input_digests(config.references),
    }
    if place.is_done(out, identity, force=force):
        say(f"{out} holds this merge already: nothing to do.")
        return False
    place.check_room(out, _bytes_needed(config))
    _merge(config, out, arguments, identity, started, force, say)
    return True


def _merge(
    config: MergeConfig,
    out: Path,
    arguments: list[str],
    identity: dict[str, Any],
    started: float,
    force: bool,
    say: Callable[[str], None],
) -> None:
    from untax.merge import engine
    from untax.merge.adapter_keys import check_keys
    from untax.merge.parameters import check_parameters

    engine.import_quietly()
    options = engine.read_options(arguments)
    validated = engine.read_config(config.raw, where=config.path)
    for note in check_parameters(validated, where=config.path):
        say(f"Note: {note}")
    problems: list[UntaxError] = []
    for reference in config.references:
        if reference.adapter is not None:
            checks.collect(problems, check_keys, reference, trust_remote_code=options.trust_remote_code)
    checks.raise_all(problems)
    with place.output_folder(out, replace=force) as part:
        scratch = part / _SCRATCH
        # mergekit puts the folder's name into the model card.
        merged = scratch / (out.resolve().name or "merge")
        merged.mkdir(parents=True)
        left_out = engine.run(validated, options, config.text, merged, where=config.path)
        mode = (merged / "config.json").stat().st_mode
        for file in merged.iterdir():
            file.chmod(mode)  # safetensors are written for the owner only
            file.rename(part / file.name)
        shutil.rmtree(scratch)
        _check_output(part, options)
        write_manifest(
            part,
            what="model",
            outputs=[
                file.name for file in part.iterdir() if file.name != "README.md"
            ],  # the card is the user's to edit
            started=started,
            **identity,
            seed=options.random_seed,
            merge={"method": validated.merge_method, "left_out": left_out},
        )
    if left_out:
        say(f"Note: mergekit left out {len(left_out)} of the inputs' tensors that it does not know: {left_out[0]} ...")


def _check_output(folder: Path, options: Any) -> None:
    checks.check_model(folder)
    if options.copy_tokenizer and not checks.has_tokenizer(folder):
        raise UntaxError(
            "The merged model would have no tokenizer: the base has none to copy.",
            where=folder,
            fix="Put the tokenizer beside the base, set tokenizer_source, or say --no-copy-tokenizer.",
        )


def _bytes_needed(config: MergeConfig) -> int:
    """The output, and a merged copy for each adapter, each as large as the base."""
    sizes = [
        sum(os.path.getsize(file) for file in reference.base.folder.glob("*.safetensors"))
        for reference in config.references
    ]
    copies = sum(
        size for size, reference in zip(sizes, config.references, strict=True) if reference.adapter is not None
    )
    return max(sizes) + copies
