"""mergekit, called as its own command calls it: its options, its configuration, its merge."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax.errors import UntaxError, near_names
from untax.merge import mergekit_methods
from untax.merge.left_out import left_out
from untax.merge.mergekit_reader import adapters_as_deltas, without_adapter
from untax.merge.mergekit_writer import Scaling, StoredDtypes, finished_by, scaled_base
from untax.merge.options import DEFAULT_SEED
from untax.merge.references import Source, with_plain_folders

if TYPE_CHECKING:
    from mergekit.config import MergeConfiguration
    from mergekit.options import MergeOptions


def import_quietly() -> None:
    """Import mergekit, without what optional libraries log meanwhile (kernels that they did not find, and the like).

    Nothing that is imported becomes garbage, so the collector is off meanwhile: that saves a sixth of the time.
    """
    logging.disable(logging.WARNING)
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mergekit.merge  # noqa: F401
            import transformers
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def read_options(arguments: list[str]) -> MergeOptions:
    """Parse mergekit-yaml's options with its own parser; the seed is ``DEFAULT_SEED`` when none is given.

    Raises:
        click.ClickException: mergekit does not know an option or its value.
        UntaxError: the options contradict each other.
    """
    import click
    from mergekit.options import add_merge_options
    from pydantic import ValidationError

    def parsed(merge_options: MergeOptions) -> MergeOptions:
        return merge_options

    command = click.command("untax merge", add_help_option=False)(add_merge_options(parsed))
    try:
        options = command.main(args=list(arguments), standalone_mode=False)
    except ValidationError as error:
        raise UntaxError(
            f"mergekit refuses these options: {_first_line(error)}",
            where=" ".join(arguments),
            fix="See `mergekit-yaml --help`.",
        ) from error
    return options if options.random_seed is not None else options.model_copy(update={"random_seed": DEFAULT_SEED})


def read_config(raw: dict[str, Any], *, where: object) -> MergeConfiguration:
    """Validate a configuration with mergekit's own classes; mergekit knows untax's methods from then on.

    Where there is no ``base_model``, mergekit takes the config and tokenizer of an arbitrary model, which changes with
    PYTHONHASHSEED; here it is always the first one in the file.

    Raises:
        UntaxError: what mergekit says is wrong, or a method that it does not know.
    """
    from mergekit.config import MergeConfiguration
    from mergekit.merge_methods.registry import registered_methods
    from pydantic import ValidationError

    mergekit_methods.register()

    class OrderedConfiguration(MergeConfiguration):
        def referenced_models(self) -> list[Any]:
            order = {str(model): position for position, model in enumerate(_in_order(self))}
            return sorted(super().referenced_models(), key=lambda model: order[str(model)])

    methods = [method.spec.name for method in registered_methods()]
    if raw.get("merge_method") not in methods:
        name = str(raw.get("merge_method"))
        raise UntaxError(
            f"mergekit has no merge method '{name}'. {near_names(name, methods)}",
            where=f"{where}, key merge_method",
            fix="Use one of the known methods.",
        )
    try:
        return OrderedConfiguration.model_validate(with_plain_folders(raw))
    except (ValidationError, RuntimeError) as error:
        raise UntaxError(
            f"mergekit refuses the configuration: {_first_line(error)}",
            where=where,
            fix="See mergekit's documentation of its YAML.",
        ) from error


def _in_order(config: MergeConfiguration) -> Iterator[Any]:
    if config.base_model:
        yield config.base_model
    for model in config.models or []:
        yield model.model
    slices = list(config.slices or [])
    for module in (config.modules or {}).values():
        yield from (model.model for model in module.models or [])
        slices += module.slices or []
    for part in slices:
        yield from (source.model for source in part.sources)


def run(
    config: MergeConfiguration, options: MergeOptions, source: str, out: Path, *, where: object, scale: float = 1.0
) -> list[str]:
    """Merge with mergekit into ``out``; adapters are read as deltas of their base, and no merged copy is written.

    The arithmetic is in fp32 whatever ``dtype`` says (float64 where it says that), and every tensor is rounded once: to
    ``out_dtype``, else to ``dtype``, else to the dtype in which ``base_model``, or else the first model, stores it.

    Args:
        config: is not changed.
        options: ``lora_merge_cache`` and ``lora_merge_dtype`` have no effect.
        source: the configuration's text, which is put beside the model.
        out: an empty folder.
        where: the configuration's file, for messages.
        scale: what is written is base + scale * (merged - base).

    Returns:
        Names of tensors of the inputs that mergekit does not know and left out, none of them changed by an adapter.

    Raises:
        UntaxError: the merge failed, would have lost part of an adapter, or is to be scaled and has no common base.
    """
    from mergekit.merge import run_merge

    whole = not (config.slices or config.modules)  # run_merge rewrites the configuration
    references = config.referenced_models()
    scaling = Scaling(scaled_base(config, where=where), scale, where) if scale != 1 else None
    out_dtype, rounding = config.out_dtype or config.dtype, None
    if out_dtype is None:
        donor = without_adapter(references[0]).model
        rounding = StoredDtypes(Source(donor.path, donor.revision).folder)
        out_dtype = rounding.most
    exact = "float64" if config.dtype == "float64" else "float32"
    own = config.model_copy(update={"dtype": exact, "out_dtype": out_dtype}, deep=True)
    with plain_errors(where), adapters_as_deltas(), finished_by(scaling, rounding, where=where), _strictly():
        options.apply_global_options()
        run_merge(own, str(out), options=options, config_source=source)
        return left_out(references, out) if whole else []


@contextlib.contextmanager
def plain_errors(where: object) -> Iterator[None]:
    """An exception of mergekit, PEFT or transformers as one sentence; a full disk as such."""
    try:
        yield
    except UntaxError:
        raise
    except Exception as error:
        if _is_full_disk(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise UntaxError(
            f"mergekit failed: {type(error).__name__}: {_first_line(error)}",
            where=where,
            fix="Run it again with `untax --debug merge ...` for the traceback.",
        ) from error


@contextlib.contextmanager
def _strictly() -> Iterator[None]:
    """What mergekit only logs as an error (a tokenizer that it could not write) ends the merge."""

    def refuse(record: logging.LogRecord) -> bool:
        if record.levelno < logging.ERROR:
            return True
        raise (record.exc_info[1] if record.exc_info else None) or RuntimeError(record.getMessage())

    logger = logging.getLogger("mergekit.merge")
    logger.addFilter(refuse)
    try:
        yield
    finally:
        logger.removeFilter(refuse)


def _is_full_disk(error: Exception) -> bool:
    # safetensors gives the system's error as text only.
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def _first_line(error: Exception) -> str:
    """The message in one line; pydantic's without its first line, which only counts the errors."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "errors.pydantic.dev" not in line]
    return " ".join(lines[1:] if "validation error" in (lines or [""])[0] else lines[:3]) or type(error).__name__
