"""One Fisher, from model and data to its file and the manifest beside it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from untax.fisher.estimate import DEFINITION, estimate
from untax.fisher.inputs import Data, Reading, Say, identities, prepare
from untax.fisher.model import Model, checkpoint_shapes
from untax.fisher.output import Progress, check_output, silent, write
from untax.fisher.weights import weights_of


@dataclass(frozen=True)
class Settings(Reading):
    """What decides the numbers, besides model and data; see also ``Reading``.

    Attributes:
        labels: ``data`` (empirical Fisher) or ``model`` (tokens drawn from the model, by the seed).
        modules: ``linear`` or ``all``.
    """

    labels: str = "data"
    modules: str = "linear"


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


def fisher(
    model: Model,
    data: Data,
    out: Path,
    settings: Settings,
    *,
    device: str = "auto",
    trust_remote_code: bool = False,
    force: bool = False,
    say: Say = print,
    progress: Progress = silent,
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
    prepared = prepare(model, data, settings, device=device, trust_remote_code=trust_remote_code, say=say)
    network, sequences = prepared.network, prepared.sequences
    weights = weights_of(network, settings.modules, checkpoint_shapes(model.folder), where=model.name)
    with progress(len(sequences)) as done:
        found, never_ran = estimate(network, weights, sequences, labels=settings.labels, seed=settings.seed, done=done)
    if never_ran:
        say(f"Warning: F is zero for {len(never_ran)} weights whose layers never ran: {never_ran[0]}, ...")
    tokens = sum(one.scored for one in sequences)
    facts = {"definition": DEFINITION, **asdict(settings), "samples": len(sequences), "tokens": tokens}
    write(out, "fisher", found, facts, identities(model, data, sequences), started=started)
    import torch

    values = sum(tensor.numel() for tensor in found.values())
    total = sum(tensor.sum(dtype=torch.float64).item() for tensor in found.values())
    return Made(out, len(found), values, len(sequences), tokens, total / max(1, values))
