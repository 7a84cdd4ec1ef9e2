"""What delta_l1 costs: step time and peak memory without it, with naive autograd, and with untax's own gradient.

    python benchmarks/sparse_overhead.py                       20M to 300M parameters; on a GPU also 1B and 7B in bf16
    python benchmarks/sparse_overhead.py --quick               20M and 60M, three rounds, nothing kept
    python benchmarks/sparse_overhead.py --sizes 60M --tokens 1x512 --accumulation 1

Llama models with random weights; LoRA of rank 16 on all linear layers with B != 0; AdamW; clipping at 1. Naive is what
one would write into compute_loss: loss + lambda * sum |s * B @ A| through autograd in every micro-batch. Ours is
untax.penalty.attach on a trainer of a few lines. The three share model and optimizer and take turns in one process.

Per optimizer step, ours takes 6 r operations for each adapted weight, whatever the batch; forward and backward take
about 4 for each weight and token. So its share falls with the tokens of a step: at rank 16 it is about 24 / tokens,
times how much worse thin matrices run than square ones. The share is also measured by itself, since on a busy machine
steps differ from each other by more than the penalty takes.

Every round gives a ratio to the step without a penalty, by process CPU time on a CPU (others may use its cores) and by
wall time on a GPU. What is measured again replaces what was there; everything else in the file stays.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sparse_memory import peak_bytes
from sparse_trainings import ON_A_GPU_ONLY, SHAPES, VARIANTS, Training, make_trainings, naive_l1

import disperse

RESULTS = Path(__file__).parent / "results" / "sparse_overhead.json"
PACKAGES = ("untax", "torch", "transformers", "peft")
GOALS = {1: 0.05, 4: 0.02}
"""Share of the optimizer step's time that the penalty may take, by gradient accumulation."""
GOAL_MEMORY = 2.0
"""In copies of the largest layer's delta in fp32."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", help=f"of {', '.join(SHAPES)}; by default all that suit the device")
    parser.add_argument("--accumulation", default="1,4")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each variant, at most")
    parser.add_argument(
        "--seconds", type=float, default=45, help="no further round begins after so much time, by the same clock"
    )
    parser.add_argument("--tokens", help="rows x length of a micro-batch; 2x512 on a CPU, 4x1024 on a GPU")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="20M and 60M, three rounds; kept nowhere without --out")
    parser.add_argument("--out", type=Path, help=f"by default {RESULTS.parent.name}/{RESULTS.name} beside this file")
    parser.add_argument("--note", help="what else to know about the run, such as what the machine did beside it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    sizes = options.sizes.split(",") if options.sizes else _default_sizes(device, options.quick)
    if unknown := [size for size in sizes if size not in SHAPES]:
        parser.error(f"unknown sizes: {', '.join(unknown)}; known: {', '.join(SHAPES)}")
    options.rounds = min(options.rounds, 3) if options.quick else options.rounds
    out = options.out or (None if options.quick else RESULTS)
    for size in sizes:
        found = measure(size, device, options)
        print_size(size, found)
        if out:
            name = f"{size}, {options.tokens} tokens" if options.tokens else size
            disperse.keep(out, device, {name: found}, conditions(options, device))


def measure(size: str, device: str, options: argparse.Namespace) -> dict[str, Any]:
    """Memory, which warms up, and then a row for each gradient accumulation."""
    rows, length = map(int, (options.tokens or ("2x512" if device == "cpu" else "4x1024")).split("x"))
    trainings = make_trainings(size, device)
    batches = [torch.randint(0, SHAPES[size][5], (rows, length), device=device) for _ in range(4)]
    memory = measure_memory(trainings, batches[0], device)
    ours = trainings["ours"]
    table = []
    for accumulation in map(int, options.accumulation.split(",")):
        chosen = [batches[index % len(batches)] for index in range(accumulation)]
        table.append({"accumulation": accumulation, **compare(trainings, chosen, device, options)})
    norms = statistics.median(timed(ours.attached.norms, device)[_primary(device)] for _ in range(3))
    for row in table:
        row["share_with_logging"] = _round(
            row["share"] + norms / ours.attached.settings.log_steps / row["step_seconds"]
        )
    return {
        "parameters_millions": round(sum(p.numel() for p in ours.model.parameters()) / 1e6, 1),
        "shape": dict(
            zip(("hidden", "intermediate", "layers", "heads", "kv", "vocab", "dtype"), SHAPES[size], strict=True)
        ),
        "tokens_per_micro_batch": f"{rows}x{length}",
        "primary_measure": "process CPU time" if device == "cpu" else "wall time",
        "norms_seconds": _round(norms),
        "memory": memory,
        "table": table,
    }


def measure_memory(trainings: dict[str, Training], batch: torch.Tensor, device: str) -> dict[str, Any]:
    """Peaks of loss and backward, and of the penalties alone, beyond what was there, in copies of the largest delta.

    Naive autograd is left out from here on if it does not fit.
    """
    attached = trainings["ours"].attached
    sizes = [4 * delta.shape[0] * delta.shape[1] for delta in attached.deltas]
    peaks: dict[str, int | None] = {}
    for name, training in trainings.items():
        training.finish(0.0)
        peaks[name] = _peak(training, batch, device)
    # The gradients of the last one are there, as they are when ours is called.
    alone = {
        "ours": peak_bytes(attached.add_gradients, device),
        "norms": peak_bytes(attached.norms, device),
        **(
            {"naive": peak_bytes(lambda: naive_l1(trainings["naive"].model).backward(), device)}
            if peaks["naive"]
            else {}
        ),
    }
    trainings["none"].optimizer.zero_grad()
    if peaks["naive"] is None:
        del trainings["naive"]
    return {
        "largest_delta_mb": _round(max(sizes) / 1e6),
        "all_deltas": _round(sum(sizes) / max(sizes)),
        "step_peak_mb": {name: peak and _round(peak / 1e6) for name, peak in peaks.items()},
        "more_at_step_peak": {
            name: _round((peaks[name] - peaks["none"]) / max(sizes)) for name in alone if peaks.get(name) is not None
        },
        "alone": {name: _round(peak / max(sizes)) for name, peak in alone.items()},
    }


def _peak(training: Training, batch: torch.Tensor, device: str) -> int | None:
    try:
        return peak_bytes(lambda: training.backward([batch]), device)
    except torch.OutOfMemoryError:
        if not training.naive:
            raise
        return None


def compare(
    trainings: dict[str, Training], batches: list[torch.Tensor], device: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Rounds of one step of each variant, the order rotating; ratios within each round."""
    ours = trainings["ours"].attached
    added: list[dict[str, float]] = []
    plain = ours.add_gradients
    ours.add_gradients = lambda: added.append(timed(plain, device))
    names = list(trainings)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    clock = time.process_time if device == "cpu" else time.perf_counter
    end = clock() + options.seconds
    for number in range(options.rounds):
        if number and clock() > end:
            break
        for index in range(len(names)):
            name = names[(index + number) % len(names)]
            times[name].append(timed(lambda name=name: trainings[name].step(batches), device))
    del ours.add_gradients
    primary = _primary(device)
    share = [one[primary] / two[primary] for one, two in zip(added, times["none"], strict=True)]
    return {
        "rounds": len(added),
        "step_seconds": _round(statistics.median(one[primary] for one in times["none"])),
        "add_gradients_seconds": _round(statistics.median(one[primary] for one in added)),
        "share": _round(statistics.median(share)),
        **{name: {kind: _ratios(times[name], times["none"], kind) for kind in ("cpu", "wall")} for name in names[1:]},
    }


def timed(work: Callable[[], Any], device: str) -> dict[str, float]:
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    _wait(device)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _ratios(these: list[dict[str, float]], those: list[dict[str, float]], kind: str) -> dict[str, float]:
    ratios = [one[kind] / two[kind] for one, two in zip(these, those, strict=True)]
    quarters = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {"median": _round(quarters[1]), "quartiles": [_round(quarters[0]), _round(quarters[2])]}


def _primary(device: str) -> str:
    return "cpu" if device == "cpu" else "wall"


def _default_sizes(device: str, quick: bool) -> list[str]:
    if quick:
        return ["20M", "60M"]
    return [size for size in SHAPES if device == "cuda" or size not in ON_A_GPU_ONLY]


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def conditions(options: argparse.Namespace, device: str) -> dict[str, Any]:
    how = disperse.conditions(options.note)
    gpu = {"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    return {
        **how,
        **gpu,
        "command": how["command"].replace("disperse.py", Path(__file__).name),
        "threads": options.threads,
        "busy": f"load average {os.getloadavg()[0]:.1f} at the end",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def print_size(size: str, found: dict[str, Any]) -> None:
    more, alone = found["memory"]["more_at_step_peak"], found["memory"]["alone"]
    print(
        f"{size}: {found['parameters_millions']}M parameters, {found['tokens_per_micro_batch']} tokens a micro-batch\n"
        f"  memory, in copies of the largest delta: naive {alone.get('naive', 'too much')} of its own, "
        f"{more.get('naive', 'too much')} more at the step's peak; ours {alone['ours']} and {more['ours']}; "
        f"goal {GOAL_MEMORY}: {_verdict(alone['ours'] <= GOAL_MEMORY)}"
    )
    kind = "cpu" if found["primary_measure"].startswith("process") else "wall"
    for row in found["table"]:
        ratios = [
            f"{name} x{row[name][kind]['median']} {row[name][kind]['quartiles']}" for name in VARIANTS if name in row
        ]
        goal = GOALS.get(row["accumulation"])
        print(
            f"  accumulation {row['accumulation']}: step {row['step_seconds']} s, {row['rounds']} rounds; "
            f"{', '.join(ratios)}; ours by itself {row['share']:.2%}, with logging {row['share_with_logging']:.2%}"
            + (f"; goal {goal:.0%}: {_verdict(row['share_with_logging'] <= goal)}" if goal else ""),
            flush=True,
        )


def _verdict(met: bool) -> str:
    return "met" if met else "MISSED"


if __name__ == "__main__":
    main()
