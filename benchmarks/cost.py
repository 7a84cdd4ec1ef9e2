"""What Disperse-Then-Merge costs beside one vanilla SFT of the same data: compute, traffic, memory, disk, the merge.

    python benchmarks/cost.py                 computed for 7B and 70B: the tables of docs/running.md
    python benchmarks/cost.py demo-run/       measured on a finished demo: steps, rows and seconds by its manifests

Computed from shapes alone, by untax.recipes.cost and the counts below. K sub-models train on G GPUs each, and vanilla
SFT on all N = K * G. A step is a batch of so many rows as the recipe says, each GPU's part of it at once. Bytes that
each GPU sends for a step, in a ring of n:

    data parallel         2 (n-1)/n of the gradient
    FSDP, fully sharded   (n-1)/n of the weights before forward and again before backward, (n-1)/n of the gradient after

n is N for vanilla and G for a sub-model; with G = 1 nothing is sent. Between sub-models nothing ever is.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from untax.recipes.cost.architecture import Architecture
from untax.recipes.cost.disk import merged_disk, training_disk
from untax.recipes.cost.hardware import GPUS
from untax.recipes.cost.known import LLAMA2_7B
from untax.recipes.cost.memory import training_memory
from untax.recipes.cost.precision import weight_bytes
from untax.recipes.cost.time import training_hours
from untax.recipes.cost.trained import trained
from untax.recipes.papers import dtm_sft, values
from untax.recipes.presets.corpora import TULU2

LLAMA2_70B = Architecture(80, 8192, 28672, 64, 8, 128, 32000)
K, EPOCHS, LENGTH = 4, 3, 1024
H100 = next(gpu for gpu in GPUS if gpu.name == "H100")
NETWORK = 50e9
"""Bytes a second that a GPU sends to another machine: 400 Gb/s, one port for each GPU."""
GB = 1e9
LORA: dict[str, Any] = {**values(dtm_sft()), "bf16": True, "sequence_len": LENGTH, "gradient_checkpointing": True}
FULL: dict[str, Any] = {key: value for key, value in LORA.items() if key != "adapter" and not key.startswith("lora_")}
MERGES = Path(__file__).parent / "results" / "merge.json"


@dataclass(frozen=True)
class Setting:
    """A way of training.

    Attributes:
        name: of it.
        model: its shape.
        keys: Axolotl's.
        batch: rows of a step.
        gpus: of a sub-model.
        sharded: whether weights, gradients and states are spread over the GPUs (FSDP).
    """

    name: str
    model: Architecture
    keys: dict[str, Any]
    batch: int
    gpus: int
    sharded: bool

    @property
    def gradient(self) -> int:
        """Bytes of the gradient: LoRA's factors are in full precision, whole models in half."""
        what = trained(self.model, self.keys)
        return what.parameters(self.model) * (2 if what.full else 4)

    @property
    def steps(self) -> float:
        """Optimizer steps of vanilla SFT, which the sub-models share."""
        return TULU2.rows * EPOCHS / self.batch

    def sent(self, gpus: int) -> float:
        """Bytes that a GPU sends for a step, on so many GPUs."""
        weights = weight_bytes(self.model, self.keys)
        return (gpus - 1) / gpus * (2 * weights + self.gradient if self.sharded else 2 * self.gradient)

    def held(self, gpus: int) -> float:
        """Bytes of a GPU, on so many."""
        memory = training_memory(self.model, {**self.keys, "micro_batch_size": self.batch // gpus})
        kept = memory.total - memory.step - memory.overhead
        return kept / (gpus if self.sharded else 1) + memory.step + memory.overhead


SETTINGS = (
    Setting("7B, LoRA r=16", LLAMA2_7B, LORA, 16, 1, False),
    Setting("7B, full", LLAMA2_7B, FULL, 16, 2, True),
    Setting("70B, LoRA r=16", LLAMA2_70B, LORA, 128, 8, True),
    Setting("70B, full", LLAMA2_70B, FULL, 128, 16, True),
)


def tables() -> str:
    """The tables of docs/running.md."""
    return "\n\n".join([_table(HEAD, map(_traffic, SETTINGS)), _table(PARTS_HEAD, map(_parts, SETTINGS))])


HEAD = (
    "",
    "GPUs",
    "hours, each way",
    "vanilla: a GPU sends in a step",
    "in all",
    "which takes",
    "DTM: a GPU sends inside its sub-model, in all",
    "between sub-models",
)


def _traffic(setting: Setting) -> tuple[str, ...]:
    every, steps = K * setting.gpus, setting.steps
    tokens = TULU2.rows * EPOCHS * TULU2.tokens
    hours = training_hours(setting.model, tokens, setting.keys, H100, length=TULU2.tokens, gpus=every)
    vanilla, ours = setting.sent(every), setting.sent(setting.gpus)
    return (
        setting.name,
        f"{K} x {setting.gpus}",
        f"{hours:.1f}",
        _bytes(vanilla),
        _bytes(vanilla * steps),
        _time(vanilla * steps / NETWORK),
        _bytes(ours * steps / K) if ours else "nothing",
        "nothing",
    )


PARTS_HEAD = (
    "",
    "steps: vanilla, sub-models",
    "gradient",
    "memory of a GPU: vanilla, DTM",
    "results: vanilla, DTM",
    "merge: read, written",
    "merge takes",
)


def _parts(setting: Setting) -> tuple[str, ...]:
    result = training_disk(setting.model, {**setting.keys, "save_strategy": "no"}).results
    merged = merged_disk(setting.model).merged
    full = trained(setting.model, setting.keys).full
    read = K * result + (0 if full else merged)
    took = "not measured" if full else _time((read + merged) / merge_rate())
    return (
        setting.name,
        f"{setting.steps:,.0f}, {K} x {setting.steps / K:,.0f}",
        _bytes(setting.gradient),
        f"{setting.held(K * setting.gpus) / GB:.0f} GB, {setting.held(setting.gpus) / GB:.0f} GB",
        f"{_bytes(result)}, {K} x {_bytes(result)}",
        f"{_bytes(read)}, {_bytes(merged)}",
        took,
    )


def merge_rate() -> float:
    """Bytes a second that `untax merge` reads and writes, imports aside, averaging four adapters into 1.1B."""
    runs = {
        (run["method"], run["contender"]): run for run in json.loads(MERGES.read_text(encoding="utf-8"))["1.1b"]["runs"]
    }
    run, imports = runs["linear", "untax"], runs[None, "imports"]
    return float((run["read"] + run["written"]) / (run["seconds"] - imports["seconds"]))


def measured(folder: Path) -> str:
    """Steps, rows and seconds of a demo's vanilla SFT and of its sub-models, and their merges."""
    manifests = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("outputs/*/untax.json")}
    parts = sorted(name for name in manifests if name.startswith("cluster-"))
    rows = [
        _measured("vanilla: one SFT", [manifests["sft"]]),
        _measured("DTM: sub-models", [manifests[p] for p in parts]),
    ]
    rows += [
        (f"DTM: {name}", "", "", "", f"{manifests[node]['wall_seconds']:.0f} s", "")
        for name, node in (("disperse", "disperse"), ("merge", "dtm"))
    ]
    return _table(("", "rows", "tokens", "steps", "seconds in all", "the longest"), rows)


def _measured(name: str, manifests: list[dict[str, Any]]) -> tuple[str, ...]:
    trainings = [manifest["training"] for manifest in manifests]
    tokens = [training.get("tokens") for training in trainings]
    seconds = [manifest["wall_seconds"] for manifest in manifests]
    return (
        name,
        f"{sum(training['rows'] for training in trainings):,}",
        "not counted" if None in tokens else f"{sum(tokens):,}",
        " + ".join(f"{training['steps']:,}" for training in trainings),
        f"{sum(seconds):.0f} s",
        f"{max(seconds):.0f} s",
    )


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _bytes(count: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e6:,.0f} MB"


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    print(measured(Path(sys.argv[1])) if len(sys.argv) > 1 else tables())
