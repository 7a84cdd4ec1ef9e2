"""One merge from YAML to model folder: checked, cached by content, published whole or not at all."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from untax.errors import UntaxError
from untax.manifest import digest_bytes, write_manifest
from untax.merge import checks, place
from untax.merge.config_file import MergeConfig, read_merge_config

_SCRATCH = ".scratch"
_WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
# Options that change how a merge is made and shown, not what comes out.
_WITHOUT_EFFECT = (
    *("--quiet", "--no-quiet", "-v", "--lora-merge-cache", "--transformers-cache"),
    *("--num-threads", "--write-threads", "--async-write", "--no-async-write"),
)


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
    if "--no-safe-serialization" in arguments:
        raise UntaxError("untax writes no pickled weights.", where="--no-safe-serialization", fix="Leave it out.")
    config = read_merge_config(config_path)
    crimes = "--allow-crimes" in arguments
    checks.check_inputs(config.references, same_base=not crimes)
    if "--no-copy-tokenizer" not in arguments:
        _check_tokenizer(config)
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
    with place.output_folder(out.resolve(), replace=force) as part:
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
        checks.check_model(part)
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


def _check_tokenizer(config: MergeConfig) -> None:
    """mergekit copies the tokenizer of base_model or else of the first model, last of all, and goes on without one."""
    donor = config.references[0].base.folder
    if not (config.raw.get("tokenizer_source") or config.raw.get("tokenizer") or checks.has_tokenizer(donor)):
        raise UntaxError(
            "The merged model would have no tokenizer: there is none to copy.",
            where=donor,
            fix="Put the tokenizer beside the model, set tokenizer_source, or say --no-copy-tokenizer.",
        )


def _bytes_needed(config: MergeConfig) -> int:
    """The output in its own dtype, and for each adapter a merged copy as large as its base."""
    width = _WIDTHS.get(str(config.raw.get("out_dtype") or config.raw.get("dtype")))
    outputs, copies = [], 0
    for reference in config.references:
        tensors = checks.check_model(reference.base.folder).values()
        size = sum(tensor.stop - tensor.start for tensor in tensors)
        outputs.append(size if width is None else width * sum(tensor.elements for tensor in tensors))
        copies += size if reference.adapter is not None else 0
    return max(outputs) + copies
