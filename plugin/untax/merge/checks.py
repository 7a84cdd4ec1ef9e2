"""What must hold of the inputs before a merge begins. Reads headers and adapters; needs neither torch nor mergekit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from untax.adapters.base import StoredModel
from untax.adapters.changes import read_changes
from untax.adapters.header import TensorInfo
from untax.adapters.stored import ADAPTER_FILES, StoredAdapter
from untax.errors import UntaxError
from untax.manifest import NOT_READ, digest_file, digest_files, digest_model, model_digest_is_known
from untax.merge.asked import tokenizer_of
from untax.merge.references import Reference
from untax.merge.same_base import check_base, has_digests, recorded_base
from untax.merge.side_files import TOKENIZER_FILES, has_tokenizer
from untax.merge.tokenizers import check_tokenizers


def check_inputs(references: Iterable[Reference], *, crimes: bool = False, tokenizers: bool = True) -> None:
    """Check every model and adapter, and that they belong together, but for the bases' digests.

    Args:
        references: the inputs.
        crimes: accept other tokenizers, and the same adapter under two names.
        tokenizers: False when the tokenizer is chosen in the YAML.

    Raises:
        UntaxError: naming everything that is wrong, not only the first thing.
    """
    problems: list[UntaxError] = []
    listed = list(references)
    for reference in listed:
        collect(problems, _check_base_model, reference)
        if reference.adapter is not None:
            collect(problems, _check_adapter, reference)
    if not problems and not crimes:
        collect(problems, _refuse_repeated, listed)
        if tokenizers:
            collect(problems, check_tokenizers, listed)
    raise_all(problems)


def check_bases(references: Iterable[Reference], *, read: bool = True, by_name: bool = False) -> None:
    """Check that each adapter is added to the base that it was trained on.

    Args:
        references: the inputs.
        read: whether bases may be read for their digests.
        by_name: check only where names decide, since there are no digests to compare; reads nothing.

    Raises:
        UntaxError: naming every adapter of another base.
    """
    problems: list[UntaxError] = []
    for reference in references:
        if reference.adapter is not None:
            adapter = StoredAdapter(reference.adapter.folder)
            if not (by_name and has_digests(adapter, reference.base)):
                collect(problems, check_base, adapter, reference.base, read=read and not by_name)
    raise_all(problems)


def _refuse_repeated(references: list[Reference]) -> None:
    seen: dict[tuple[Path, str], Reference] = {}
    for reference in references:
        adapter = reference.adapter
        digest = "" if adapter is None else digest_files(adapter.folder, ADAPTER_FILES)
        same = seen.setdefault((reference.base.place, digest), reference)
        if same is not reference:
            raise UntaxError(
                f"Two of the models are the same {'adapter' if adapter else 'model'}: {same.text}, {reference.text}.",
                where=(adapter or reference.base).folder,
                fix="List it once, with both weights added up; if it is meant so, say --allow-crimes.",
            )


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
        raise UntaxError(f"{len(problems)} things are wrong with the inputs:\n{listed}")


def check_model(folder: Path) -> dict[str, TensorInfo]:
    """The tensors of a model folder, by name.

    Raises:
        UntaxError: it is no model, its weights are pickled, or a shard is missing or cut off.
    """
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise UntaxError(
            "The folder is an adapter, not a model.", where=folder, fix="Name it as base+adapter, beside its base."
        )
    return StoredModel(folder).tensors


def _check_base_model(reference: Reference) -> None:
    check_model(reference.base.folder)


def _check_adapter(reference: Reference) -> None:
    assert reference.adapter is not None
    adapter = StoredAdapter(reference.adapter.folder)
    read_changes(adapter, StoredModel(reference.base.folder))
    bad = adapter.nonfinite()
    if bad:
        raise UntaxError(
            f"The adapter has NaN or infinity in {bad}.",
            where=adapter.folder,
            fix="Its training diverged: train it again with a smaller learning rate.",
        )


def check_has_tokenizer(base: Path) -> None:
    """The tokenizer of a merged model is its base's, which is easily forgotten when a base is copied by hand.

    Raises:
        UntaxError: the base has none.
    """
    if not has_tokenizer(base):
        raise UntaxError(
            "The merged model would have no tokenizer: there is none to copy.",
            where=base,
            fix="Put the tokenizer beside the model, set tokenizer_source, or say --no-copy-tokenizer.",
        )


def check_outputs(outs: Iterable[Path], references: Iterable[Reference]) -> None:
    """Make sure that no input lies where an output is to be: --force would remove it.

    Raises:
        UntaxError: one does.
    """
    inputs = [source for one in references for source in (one.base, one.adapter) if source is not None]
    for out in outs:
        lost = next((one for one in inputs if one.place.is_relative_to(out.resolve())), None)
        if lost is not None:
            raise UntaxError(
                f"The merge would take the place of one of its inputs: {lost.text}.",
                where=out,
                fix="Name another folder.",
            )


def check_values(config: dict[str, Any], *, where: object) -> None:
    """Check what no method takes, wherever it stands in the YAML.

    Raises:
        UntaxError: a density that is not above 0 and at most 1.
    """
    for density in (leaf for setting in _values_of(config, "density") for leaf in _leaves(setting)):
        if not _is_share(density):
            raise UntaxError(
                f"A density of {density} is not above 0 and at most 1.",
                where=f"{where}, key density",
                fix="density is the share of a delta's elements that stay: 0.5, for instance.",
            )


def _is_share(value: float | str) -> bool:
    try:
        return 0 < float(value) <= 1
    except ValueError:
        return True  # no number at all: whoever reads it says so


def _values_of(node: Any, key: str) -> Iterator[Any]:
    """What stands under a key, wherever that is."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            else:
                yield from _values_of(value, key)
    elif isinstance(node, list):
        for item in node:
            yield from _values_of(item, key)


def _leaves(node: Any) -> Iterator[Any]:
    """All values of a setting, in gradients and filters too."""
    if isinstance(node, list):
        for item in node:
            yield from _leaves(item)
    elif isinstance(node, dict):
        yield from _leaves(node.get("value"))
    elif isinstance(node, int | float | str):
        yield node


def side_digests(config: Any) -> dict[str, str]:
    """The digests of all files that stand under ``parameters:``, such as those of `untax fisher`, by path."""
    given = [found for found in _values_of(config, "parameters") if isinstance(found, dict)]
    leaves = [leaf for found in given for value in found.values() for leaf in _leaves(value) if isinstance(leaf, str)]
    return {leaf: digest_file(Path(leaf)) for leaf in dict.fromkeys(leaves) if Path(leaf).is_file()}


def input_digests(references: Iterable[Reference], *, read: bool = True) -> dict[str, str]:
    """The identity of every model and adapter, by its path (and revision) as the YAML has it, and of local tokenizers.

    Args:
        references: the inputs.
        read: whether bases may be read; if not, an unknown digest is that which the adapters recorded, or "not read".
    """
    digests: dict[str, str] = {}
    for reference in references:
        if read or model_digest_is_known(reference.base.path):
            digests[reference.base.text] = digest_model(reference.base.path, reference.base.revision)
        else:
            recorded = reference.adapter and recorded_base(reference.adapter.folder)
            digests[reference.base.text] = recorded or digests.get(reference.base.text, NOT_READ)
        if reference.base.path is not None and Path(reference.base.path).is_dir():
            digests[tokenizer_of(reference.base.text)] = digest_files(Path(reference.base.path), TOKENIZER_FILES)
        if reference.adapter is not None:
            digests[reference.adapter.text] = digest_files(reference.adapter.folder, ADAPTER_FILES)
    return digests
