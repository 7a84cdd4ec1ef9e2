"""`untax merge` beside mergekit-yaml: time, memory, disk and error of merging four adapters into one model.

    python benchmarks/merge.py --work /tmp/merge                    1.1B parameters, about 15 GB of free disk
    python benchmarks/merge.py --shape tiny --out /tmp/merge.json   a smoke test
    python benchmarks/merge.py --only stock --methods linear

The base has the shape of TinyLlama-1.1B, in bf16 and with random weights, and the adapters are LoRA of rank 16 on the
MLP. Every contender is the whole command, in a process of its own, one after the other: mergekit-yaml (its cache of
merged adapters emptied before), untax merge (its own cache emptied before), untax merge --as-adapter, cp with fsync,
and a Python that only imports. Before each, the kernel is asked to drop the models' files from its cache. None is
limited in its threads unless --threads says so. mergekit and untax merge do not wait for the disk; flush is the time
that takes afterwards.

The error is that of the merged delta against the merge in float64, over the MLP tensors of three layers; see
merge_error.py. dare_ties draws masks at random, other ones in each program, so that only its mean can be compared.

What is measured again replaces what was there in the JSON file; everything else in it stays.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import merge_error
import psutil
from merge_models import ADAPTERS, METHODS, RANK, SHAPES, make
from merge_watch import Failed, forget, size, watch

import disperse

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "merge.json"
TOKENIZER = HERE.parent / "plugin" / "untax" / "demo" / "base"
PACKAGES = ("untax", "mergekit", "torch", "transformers", "peft", "safetensors")
GOALS = {"linear": 1 / 5, "ties": 1 / 10, "dare_ties": 1 / 8}
"""Wall time of untax merge by that of mergekit-yaml; for linear the aim is 1/8."""
GOAL_MEMORY, GOAL_ADAPTER, GOAL_ADAPTER_SECONDS = 1 / 4, 1 / 10, 2.0
IMPORTS = "import torch, yaml, safetensors, untax.cli.main, untax.merge.as_adapter"
CONTENDERS = ("stock", "untax", "as-adapter", "cp", "imports")
ROOM = 7.5
"""Free disk that is needed, in copies of the base: itself, K merged ones in mergekit's cache, two outputs."""


def main() -> None:
    options = _options()
    work = options.work or Path(tempfile.mkdtemp(prefix="untax-merge-"))
    shape = SHAPES[options.shape]
    work = (work / options.shape).resolve()
    work.mkdir(parents=True, exist_ok=True)
    needed = int(ROOM * 2 * sum(math.prod(found) for found in shape.tensors().values()))
    if shutil.disk_usage(work).free < needed:
        sys.exit(f"{needed / 1e9:.0f} GB of free disk are needed in the work folder; name another one with --work.")
    print(f"making the models ({options.shape}) ...", flush=True)
    make(work, shape, TOKENIZER)
    try:
        runs = [run for number in range(options.repeat) for run in _round(work, options, number)]
    finally:
        if options.work is None:
            shutil.rmtree(work.parent)
    found = {"runs": runs, "summary": _summary(runs)}
    _print(found["summary"])
    _keep(options, found)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), help=f"of {', '.join(METHODS)}; all by default")
    parser.add_argument("--only", help=f"of {', '.join(CONTENDERS)}; all by default")
    parser.add_argument("--shape", choices=list(SHAPES), default="1.1b")
    parser.add_argument("--repeat", type=int, default=1, help="rounds; every other one in reverse order")
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS of all; by default none is limited")
    parser.add_argument("--work", type=Path, help="where the models are made and kept; a temporary folder by default")
    parser.add_argument("--keep", action="store_true", help="keep the merged models too, with --work")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--note", help="what else to know about the run, such as what the machine did beside it")
    options = parser.parse_args()
    options.methods = _listed(parser, options.methods, METHODS)
    options.only = _listed(parser, options.only or ",".join(CONTENDERS), CONTENDERS)
    return options


def _listed(parser: argparse.ArgumentParser, text: str, known: Any) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return names


def _round(work: Path, options: argparse.Namespace, number: int) -> list[dict[str, Any]]:
    """Every contender once; those of one method directly after each other."""
    runs = [_run(work, options, None, name) for name in ("imports", "cp") if name in options.only]
    shutil.rmtree(_out(work, None, "cp"), ignore_errors=True)
    for method in options.methods:
        names = [name for name in ("stock", "untax", "as-adapter") if name in options.only]
        names = [name for name in names if name != "as-adapter" or method == "linear"]
        own = [_run(work, options, method, name) for name in names[:: -1 if number % 2 else 1]]
        if number == 0:
            _add_errors(work, options, method, own)
        runs += own
        if not options.keep:
            for name in names:
                shutil.rmtree(_out(work, method, name), ignore_errors=True)
    return runs


def _run(work: Path, options: argparse.Namespace, method: str | None, name: str) -> dict[str, Any]:
    out, cache, own_cache = _out(work, method, name), work / "lora-cache", work / "cache"
    for folder in (out, cache, own_cache):
        shutil.rmtree(folder, ignore_errors=True)
    inputs = [work / "base", *(work / f"a{number}" for number in range(ADAPTERS))]
    forget(inputs)
    print(f"{method or ''} {name} ...".strip(), end=" ", flush=True)
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment |= {"XDG_CACHE_HOME": str(own_cache), "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hub")}
    environment |= {"OMP_NUM_THREADS": str(options.threads)} if options.threads else {}
    command = _command(work, method, name, out, cache)
    run: dict[str, Any] = {"method": method, "contender": name}
    try:
        found = watch(command, environment=environment, log=work / "log.txt", results=[out, cache])
    except Failed as error:
        print(f"failed\n{_anonymous(str(error), work)}", flush=True)
        return run | {"failed": _anonymous(str(error), work).splitlines()[-1]}
    run |= {
        key: round(value, 2) if isinstance(value, float) else value for key, value in dataclasses.asdict(found).items()
    }
    run |= {"left_in_output": size([out]), "left_elsewhere": size([cache, own_cache])}
    shutil.rmtree(cache, ignore_errors=True)
    print(f"{run['seconds']:.1f} s, {run['peak_rss'] / 1e9:.2f} GB", flush=True)
    return run


def _out(work: Path, method: str | None, name: str) -> Path:
    return work / "-".join(filter(None, ("out", method, name)))


def _command(work: Path, method: str | None, name: str, out: Path, cache: Path) -> list[str]:
    programs = Path(sys.executable).parent
    config = str(work / f"{method}.yaml")
    return {
        "stock": [str(programs / "mergekit-yaml"), config, str(out), "--lora-merge-cache", str(cache)],
        "untax": [str(programs / "untax"), "merge", config, str(out)],
        "as-adapter": [str(programs / "untax"), "merge", config, str(out), "--as-adapter"],
        "cp": ["sh", "-c", 'cp -r --reflink=never "$1" "$2" && sync "$2"/*', "cp", str(work / "base"), str(out)],
        "imports": [sys.executable, "-c", IMPORTS],
    }[name]


def _anonymous(text: str, work: Path) -> str:
    return text.replace(str(work), "WORK").replace(str(HERE.parent), "UNTAX")


def _add_errors(work: Path, options: argparse.Namespace, method: str, runs: list[dict[str, Any]]) -> None:
    """Of the first round: the outputs of the others are the same, or as random."""
    shape = SHAPES[options.shape]
    models = {run["contender"]: run for run in runs if "failed" not in run and run["contender"] != "as-adapter"}
    if models:
        print(f"{method}: comparing with float64 ...", flush=True)
        outputs = {name: _out(work, method, name) for name in models}
        found = merge_error.measure(work, shape, method, outputs)
        for name, run in models.items():
            run["error"] = found[name] | {"rounded_once": found["rounded_once"], **found.get("both", {})}
            run["untouched_tensors_are_the_base's"] = merge_error.untouched(work, shape, outputs[name])
    for run in runs:
        if run["contender"] == "as-adapter" and "failed" not in run:
            error = merge_error.adapter_error(work, shape, _out(work, method, "as-adapter"))
            run["error"] = {"relative_error": error}


def _summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians of time and maxima of memory by method and contender, and their ratios to stock."""
    summary: list[dict[str, Any]] = []
    for key in dict.fromkeys((run["method"], run["contender"]) for run in runs):
        own = [run for run in runs if (run["method"], run["contender"]) == key and "failed" not in run]
        if own:
            summary.append({"method": key[0], "contender": key[1], "runs": len(own)} | _middle(own))
    for line in summary:
        stock = next((one for one in summary if (one["method"], one["contender"]) == (line["method"], "stock")), None)
        if stock and line is not stock:
            line["seconds_by_stock"] = round(line["seconds"] / stock["seconds"], 4)
            line["peak_rss_by_stock"] = round(line["peak_rss"] / stock["peak_rss"], 4)
    bare = next((line["seconds"] for line in summary if line["contender"] == "imports"), None)
    for line in summary:
        if line["contender"] == "as-adapter" and bare is not None:
            line["seconds_without_imports"] = round(line["seconds"] - bare, 2)
    return summary


def _middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    numbers = [key for key, value in runs[0].items() if isinstance(value, (int, float)) and not isinstance(value, bool)]
    found = {key: statistics.median(run[key] for run in runs) for key in numbers}
    found["peak_rss"] = max(run["peak_rss"] for run in runs)
    return found | {
        key: value for key, value in runs[0].items() if key in ("error", "untouched_tensors_are_the_base's")
    }


def _print(summary: list[dict[str, Any]]) -> None:
    columns = ("method", "contender", "wall s", "flush s", "CPU s", "peak GB", "anon GB", "disk in", "disk out")
    lines = [[*columns, "output", "elsewhere", "error", "rounded once", "off", "slope"]]
    for one in summary:
        error = one.get("error", {})
        numbers = [one["seconds"], one["flush_seconds"], one["cpu_seconds"]]
        keys = ("peak_rss", "peak_anonymous", "read_disk", "written_disk", "left_in_output", "left_elsewhere")
        sizes = [one[key] / 1e9 for key in keys]
        best = error.get("rounded_once", {})
        errors = [error.get("relative_error"), best.get("relative_error"), error.get("off"), error.get("slope")]
        texts = [one["method"] or "", one["contender"], *(f"{value:.1f}" for value in numbers)]
        texts += [f"{value:.2f}" for value in sizes]
        lines.append(
            [*texts, *("" if value is None else f"{value:.2g}" if value < 0.1 else f"{value:.4f}" for value in errors)]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))
    for one in summary:
        _print_layers(one)
    for one in summary:
        if "seconds_by_stock" in one:
            print(_goal(one))


def _print_layers(one: dict[str, Any]) -> None:
    """What rounding costs, by the size of the deltas."""
    error = one.get("error", {})
    for layer, best in zip(error.get("layers", []), error.get("rounded_once", {}).get("layers", []), strict=True):
        if "relative_error" in layer:
            print(
                f"{one['method']} {one['contender']}, deltas of {layer['relative_size']:.2g} of the weights: "
                f"relative error {layer['relative_error']:.3f}, rounded once {best['relative_error']:.3f}; "
                f"elements as in the base {layer['unchanged']:.1%}, rounded once {best['unchanged']:.1%}"
            )


def _goal(one: dict[str, Any]) -> str:
    adapter = one["contender"] == "as-adapter"
    wanted = GOAL_ADAPTER if adapter else GOALS[one["method"]]
    parts = [_ratio("wall", one["seconds_by_stock"], wanted), _ratio("peak RSS", one["peak_rss_by_stock"], GOAL_MEMORY)]
    if one["method"] == "linear" and not adapter:
        parts.insert(1, "aim 1/8")
    if "seconds_without_imports" in one:
        rest = one["seconds_without_imports"]
        parts.append(
            f"{rest:.2f} s after imports, goal {GOAL_ADAPTER_SECONDS:.0f} s {_verdict(rest <= GOAL_ADAPTER_SECONDS)}"
        )
    return f"{one['method']} {one['contender']} beside stock: {', '.join(parts)}"


def _ratio(what: str, found: float, wanted: float) -> str:
    return f"{what} 1/{1 / found:.1f}, goal 1/{1 / wanted:.0f} {_verdict(found <= wanted)}"


def _verdict(met: bool) -> str:
    return "(met)" if met else "(MISSED)"


def _keep(options: argparse.Namespace, found: dict[str, Any]) -> None:
    how = disperse.conditions(options.note)
    how |= {
        "command": how["command"].replace("disperse.py", Path(__file__).name),
        "threads": options.threads or "not limited",
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "busy": f"load average {os.getloadavg()[0]:.1f} at the end",
        "versions": {name: disperse._version(name) for name in PACKAGES},
    }
    shape = dataclasses.asdict(SHAPES[options.shape]) | {"adapters": ADAPTERS, "rank": RANK, "dtype": "bfloat16"}
    whole = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    own = whole.setdefault(options.shape, {})
    new = {(run["method"], run["contender"]) for run in found["runs"]}
    for key in ("runs", "summary"):
        old = [one for one in own.get(key, []) if (one["method"], one["contender"]) not in new]
        own[key] = old + found[key]
    own |= {"shape": shape, "conditions": how}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
