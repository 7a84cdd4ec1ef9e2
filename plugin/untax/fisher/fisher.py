"""One Fisher, from model and data to its file and the manifest beside it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from untax import __version__
from untax.errors import UntaxError
from untax.fisher import texts
from untax.fisher.estimate import DEFINITION, estimate
from untax.fisher.model import Model, checkpoint_shapes, load_network, load_tokenizer, place
from untax.fisher.sequences import Tokenised, check_vocabulary, tokenise
from untax.fisher.store import write_diagonal
from untax.fisher.weights import weights_of
from untax.manifest import digest_file, digest_json, write_manifest

if TYPE_CHECKING:
    import torch

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Settings:
    """What decides the numbers, besides model and data.

    Attributes:
        samples: N, how many texts.
        sequence_len: tokens of a text that are read.
        seed: of which texts are taken and, with ``labels="model"``, of the tokens drawn.
        labels: ``data`` (empirical Fisher) or ``model`` (tokens drawn from the model).
        modules: ``linear`` or ``all``.
        dtype: ``float32`` or ``bfloat16``, of the forward and backward pass; squares are summed in float32.
    """

    samples: int = 256
    sequence_len: int = 512
    seed: int = 42
    labels: str = "data"
    modules: str = "linear"
    dtype: str = "float32"


@dataclass(frozen=True)
class Data:
    """Where the texts are from.

    Attributes:
        path: the file.
        prompt: what is put before the response of a row with an instruction.
        column: of rows, the one with the text.
        separator: of plain text, what stands between two texts.
    """

    path: Path
    prompt: texts.Prompt
    column: str = texts.COLUMN
    separator: str | None = None


@dataclass(frozen=True)
class Made:
    """What was written.

    Attributes:
        path: the file.
        tensors: how many weights it covers.
        values: how many numbers it holds.
        samples: N.
        tokens: how many tokens were scored.
        mean: of all numbers.
    """

    path: Path
    tensors: int
    values: int
    samples: int
    tokens: int
    mean: float


def manifest_name(path: Path) -> str:
    """The manifest of a Fisher; several may share a folder."""
    return f"{path.stem}.untax.json"


def fisher(
    model: Model,
    data: Data,
    out: Path,
    settings: Settings,
    *,
    device: str = "auto",
    trust_remote_code: bool = False,
    force: bool = False,
    say: Callable[[str], object] = print,
    progress: Callable[[int], contextlib.AbstractContextManager[Callable[[int], object]]] | None = None,
) -> Made:
    """Estimate the diagonal Fisher of a model on some texts and write it; ``estimate`` says what it is.

    An estimate is not resumed: nothing is written before it is whole.

    Args:
        model: the model.
        data: the texts.
        out: the file to write, ``*.safetensors``; its manifest is written beside it.
        settings: what decides the numbers.
        device: ``auto``, ``cpu`` or ``cuda``.
        trust_remote_code: whether code that comes with the model may run.
        force: replace ``out``.
        say: called with each sentence for the user.
        progress: given N, a context whose value is called with the number of sequences that were finished.

    Raises:
        UntaxError: an input or the output is not as it must be, or a gradient is not finite; nothing was written.
    """
    started = time.time()
    check_output(out, force=force)
    # Reading forks a process: before torch is there.
    chosen = _choose(data, settings, say)
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    tokenised = _tokenised(chosen, tokenizer, settings.sequence_len, data.path, say)
    network = load_network(model, dtype=settings.dtype, device=place(device), trust_remote_code=trust_remote_code)
    _check(network, tokenised, settings.sequence_len, model.name)
    weights = weights_of(network, settings.modules, checkpoint_shapes(model.folder), where=model.name)
    sequences = tokenised.sequences
    with (progress or _silent)(len(sequences)) as done:
        found, never_ran = estimate(network, weights, sequences, labels=settings.labels, seed=settings.seed, done=done)
    if never_ran:
        say(f"Warning: F is zero for {len(never_ran)} weights whose layers never ran: {never_ran[0]}, ...")
    facts = {**asdict(settings), "samples": len(sequences), "tokens": sum(one.scored for one in sequences)}
    inputs = {
        **model.identity(),
        "data": digest_file(data.path),
        "token_ids": digest_json([[list(one.ids), one.start] for one in sequences]),
    }
    _write(out, found, facts, inputs, started)
    return _made(out, found, facts)


def check_output(out: Path, *, force: bool) -> None:
    """Make sure that a Fisher can be written here.

    Raises:
        UntaxError: the name has another ending, the file is there and ``force`` is not given, or the folder cannot be
            written to.
    """
    if out.suffix != SUFFIX:
        raise UntaxError(f"A Fisher is a {SUFFIX} file.", where=out, fix=f"Name it {out.stem or 'fisher'}{SUFFIX}.")
    if out.is_dir() or (out.exists() and not force):
        raise UntaxError("The output is there already.", where=out, fix="Name another file, or say --force.")
    there = next(parent for parent in out.absolute().parents if parent.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UntaxError("Nothing can be written there.", where=there, fix="Make it writable or name another folder.")


def _choose(data: Data, settings: Settings, say: Callable[[str], object]) -> list[texts.Text]:
    every = texts.read_texts(
        data.path,
        column=data.column,
        separator=data.separator,
        prompt=data.prompt,
        tokens=settings.sequence_len,
    )
    chosen, count = texts.choose(every, samples=settings.samples, seed=settings.seed)
    if not count:
        raise UntaxError("There is no text in the data: all are empty.", where=data.path, fix="Check the file.")
    if count < settings.samples:
        say(f"Warning: there are only {count} texts for {settings.samples} samples, and no more are used.")
    return chosen


def _tokenised(
    chosen: list[texts.Text], tokenizer: Any, length: int, path: Path, say: Callable[[str], object]
) -> Tokenised:
    found = tokenise(chosen, tokenizer, length=length)
    if not found.sequences:
        raise UntaxError(
            f"None of {len(chosen)} texts has a token to score within {length} tokens.",
            where=path,
            fix="Give longer texts, or a larger --sequence-len if prompts take all the room.",
        )
    if found.left_out:
        say(f"Warning: {found.left_out} of {len(chosen)} texts have no token to score and are left out.")
    if found.cut:
        say(f"{found.cut} of {len(found.sequences)} texts are cut to {length} tokens.")
    return found


def _check(network: Any, tokenised: Tokenised, length: int, name: str) -> None:
    check_vocabulary(tokenised.sequences, network.get_input_embeddings().weight.shape[0], where=name)
    context = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    if context and length > context and max(len(one.ids) for one in tokenised.sequences) > context:
        raise UntaxError(
            f"The model's context is {context} tokens, and some texts have more.",
            where=name,
            fix=f"Use --sequence-len {context}.",
        )


def _write(
    out: Path, found: dict[str, torch.Tensor], facts: dict[str, Any], inputs: dict[str, str], started: float
) -> None:
    metadata = {"what": "fisher", "definition": DEFINITION, "untax": __version__, **facts, **inputs}
    write_diagonal(out, found, {key: str(value) for key, value in metadata.items()})
    write_manifest(
        out.parent,
        what="fisher",
        outputs=[out.name],
        started=started,
        name=manifest_name(out),
        inputs=inputs,
        seed=facts["seed"],
        fisher={"definition": DEFINITION, **{key: value for key, value in facts.items() if key != "seed"}},
    )


def _made(out: Path, found: dict[str, torch.Tensor], facts: dict[str, Any]) -> Made:
    import torch

    values = sum(tensor.numel() for tensor in found.values())
    total = sum(tensor.sum(dtype=torch.float64).item() for tensor in found.values())
    return Made(out, len(found), values, facts["samples"], facts["tokens"], total / max(1, values))


@contextlib.contextmanager
def _silent(count: int) -> Any:
    yield lambda number: None
