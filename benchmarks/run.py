"""`untax run` beside the same commands typed one after another; kept in benchmarks/results/run.json.

    python benchmarks/run.py                            the demo's whole graph, one pair: some 25 minutes on two cores
    python benchmarks/run.py --arms vanilla,dtm --rows 200 --out /tmp/run.json      a quick look
    python benchmarks/run.py --pairs 3                  in alternating order
    python benchmarks/run.py --overhead --epochs 2      one long training: what the runner costs

Both sides of a pair start from equal fresh folders, with caches of their own, and each node has one thread. The typed
commands are those of the plan, each a fresh process, one after the other in the order of the plan. Wall time is that of
the monotonic clock, from the first command's start to the last one's end. Before the pairs Axolotl is imported once,
so that neither side pays for the first reading of its files from the disk. After each pair all weights of both folders
are compared, byte for byte. The runner's own CPU time is that of its process without its children, sampled while it
runs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

import disperse
from untax.demo.demo import prepare
from untax.manifest import digest_file
from untax.recipes.graph import Node
from untax.recipes.plan import plan
from untax.recipes.spec import SPEC_NAME, check_spec, read_spec
from untax.recipes.write import write_run_folder
from untax.run.process import environment

RESULTS = Path(__file__).parent / "results" / "run.json"
PACKAGES = ("untax", "axolotl", "torch", "transformers", "peft", "trl", "lm_eval", "mergekit")
BIN = Path(sys.executable).parent
GOAL, GOAL_OVERHEAD = 0.6, 0.01
"""Wall time of `untax run` by that of the typed commands, and what it may add to a long one."""
LONG = "sft"
"""The node of --overhead."""


def main() -> None:
    options = _options()
    work = Path(tempfile.mkdtemp(prefix="untax-run-", dir=options.work))
    load = os.getloadavg()[0]
    try:
        template = make(work / "template", ["vanilla"] if options.overhead else options.arms, options)
        print("importing Axolotl once ...", flush=True)
        subprocess.run([BIN / "axolotl", "--version"], capture_output=True, check=True, env=variables(work))
        pairs = [pair(template, work, number, options) for number in range(options.pairs)]
    finally:
        if not options.keep:
            shutil.rmtree(work)
    summary = summarize(pairs)
    show(pairs, summary, options)
    keep(options, {"summary": summary, "pairs": pairs, "load_before": round(load, 2)})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=lambda text: text.split(","), help="of the demo's; all by default")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--jobs", type=int, help="nodes at a time; one per core by default")
    parser.add_argument("--overhead", action="store_true", help=f"one training alone: the node {LONG}")
    parser.add_argument("--epochs", type=int, default=1, help="of every SFT; one takes the demo's some minutes")
    parser.add_argument("--rows", type=int, help="of the training data, for a quick look; all by default")
    parser.add_argument("--work", type=Path, help="where to make the folders; the system's temporary folder by default")
    parser.add_argument("--keep", action="store_true", help="leave them there")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--note", help="what else to know about the run, such as what the machine did beside it")
    return parser.parse_args()


def make(folder: Path, arms: list[str] | None, options: argparse.Namespace) -> Path:
    """The demo's run folder, with some of its arms."""
    prepare(folder)
    for name in ("sft", "preference") if options.rows else ():
        data = folder / "data" / f"{name}.jsonl"
        data.write_text("".join(data.read_text(encoding="utf-8").splitlines(keepends=True)[: options.rows]))
    content = yaml.safe_load((folder / SPEC_NAME).read_text(encoding="utf-8"))
    if unknown := set(arms or ()) - set(content["arms"]):
        sys.exit(f"unknown arms: {', '.join(sorted(unknown))}; known: {', '.join(content['arms'])}")
    content["arms"] = {name: arm for name, arm in content["arms"].items() if arms is None or name in arms}
    content["training"]["sft"]["num_epochs"] = options.epochs
    write_run_folder(check_spec(content, where="the benchmark's recipe"), folder, force=True)
    return folder


def variables(folder: Path) -> dict[str, str]:
    """A node's environment, with caches below the folder: what one side has cached must not serve the other."""
    cache = folder / ".cache"
    return {
        **environment(1, (), cpu_only=True),
        **{"XDG_CACHE_HOME": str(cache), "HF_HOME": str(cache / "hf"), "HF_DATASETS_CACHE": str(cache / "datasets")},
        **{"HF_HUB_OFFLINE": "1", "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")},
    }


def pair(template: Path, work: Path, number: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides, the second pair in the other order, and whether they made the same weights."""
    found: dict[str, Any] = {"load_before": round(os.getloadavg()[0], 2)}
    sides = {"run": run, "typed": typed}
    for name in [*sides][:: -1 if number % 2 else 1]:
        folder = work / f"{name}-{number}"
        shutil.copytree(template, folder)
        found[name] = sides[name](folder, options)
    digests = [weights(work / f"{name}-{number}") for name in sides]
    if not digests[0] or digests[0] != digests[1]:
        differ = sorted(name for name in {**digests[0], **digests[1]} if len({one.get(name) for one in digests}) > 1)
        sys.exit(f"The weights of the two sides differ: {', '.join(differ) or 'there are none'}")
    if not options.keep:
        for name in sides:
            shutil.rmtree(work / f"{name}-{number}")
    return found | {"files_of_equal_weights": len(digests[0])}


def run(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """``untax run`` on a folder: wall time of the whole and of each node, and CPU time of the runner alone."""
    command = [str(BIN / "untax"), "run", str(folder), *(["--jobs", str(options.jobs)] if options.jobs else [])]
    command += ["--only", LONG] if options.overhead else []
    print(f"untax run ({len(nodes(folder, options))} nodes) ...", end=" ", flush=True)
    own, before, begun = 0.0, cpu(), time.monotonic()
    with (folder / "run.log").open("wb") as log:
        process = psutil.Popen(command, env=variables(folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while process.poll() is None:
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            own = max(own, times.user + times.system)
            try:
                process.wait(0.1)
            except psutil.TimeoutExpired:
                continue
    wall = time.monotonic() - begun
    if process.returncode:
        sys.exit(f"untax run failed:\n{(folder / 'run.log').read_text()}")
    print(f"{wall:.1f} s", flush=True)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    seconds = {one["node"]: one["wall_seconds"] for one in events if one["event"] == "node-ended"}
    taken = {"wall_seconds": round(wall, 2), "cpu_seconds": round(cpu() - before, 2)}
    return taken | {"own_cpu_seconds": round(own, 2), "nodes": seconds}


def typed(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The same commands, one after the other."""
    print("typed ...", end=" ", flush=True)
    seconds, before, begun = {}, cpu(), time.monotonic()
    for node in nodes(folder, options):
        at = time.monotonic()
        with (folder / f"{node.name}.log").open("wb") as log:
            command = [str(BIN / node.command[0]), *node.command[1:]]
            done = subprocess.run(
                command, cwd=folder, env=variables(folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        if done.returncode:
            sys.exit(f"{' '.join(node.command)} failed:\n{(folder / f'{node.name}.log').read_text()}")
        seconds[node.name] = round(time.monotonic() - at, 2)
    wall = time.monotonic() - begun
    print(f"{wall:.1f} s", flush=True)
    return {"wall_seconds": round(wall, 2), "cpu_seconds": round(cpu() - before, 2), "nodes": seconds}


def cpu() -> float:
    """CPU seconds of all ended processes that descend from this one."""
    taken = resource.getrusage(resource.RUSAGE_CHILDREN)
    return taken.ru_utime + taken.ru_stime


def nodes(folder: Path, options: argparse.Namespace) -> list[Node]:
    """What is run, in the order of the plan."""
    return [node for node in plan(read_spec(folder / SPEC_NAME)).nodes if node.name == LONG or not options.overhead]


def weights(folder: Path) -> dict[str, str]:
    """Every file of weights below ``outputs``, but for tokenised data and checkpoints -> its digest."""
    files = sorted((folder / "outputs").glob("*/*.safetensors"))
    return {file.relative_to(folder).as_posix(): digest_file(file) for file in files}


def summarize(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over the pairs, and what they give: shares of the typed wall time."""
    ours, theirs = (sum(one[side]["wall_seconds"] for one in pairs) for side in ("run", "typed"))
    return {
        "run_seconds": round(ours, 2),
        "typed_seconds": round(theirs, 2),
        "ratio": round(ours / theirs, 4),
        "ratios": [round(one["run"]["wall_seconds"] / one["typed"]["wall_seconds"], 4) for one in pairs],
        "cpu_ratio": round(
            sum(one["run"]["cpu_seconds"] for one in pairs) / sum(one["typed"]["cpu_seconds"] for one in pairs), 4
        ),
        "own_cpu_share": round(sum(one["run"]["own_cpu_seconds"] for one in pairs) / ours, 5),
    }


def show(pairs: list[dict[str, Any]], summary: dict[str, Any], options: argparse.Namespace) -> None:
    """A line per node, and the goal."""
    names = list(pairs[0]["typed"]["nodes"])
    width = max(map(len, names))
    print(f"\n{'node':<{width}}  typed s    run s")
    for name in names:
        both = (sum(one[side]["nodes"][name] for one in pairs) / len(pairs) for side in ("typed", "run"))
        print(f"{name:<{width}}" + "".join(f"  {value:7.1f}" for value in both))
    both = (summary[side] / len(pairs) for side in ("typed_seconds", "run_seconds"))
    print(f"{'all':<{width}}" + "".join(f"  {value:7.1f}" for value in both))
    print(f"\nCPU time {summary['cpu_ratio']:.3f} of the typed commands'")
    print(f"the runner's own CPU time: {summary['own_cpu_share']:.2%} of its wall time")
    if options.overhead:
        share = summary["ratio"] - 1
        print(f"untax run adds {share:.2%}, goal {GOAL_OVERHEAD:.0%} {_verdict(share <= GOAL_OVERHEAD)}")
    else:
        print(
            f"wall time {summary['ratio']:.3f} of the typed commands' (pairs: {summary['ratios']}), goal {GOAL} "
            f"{_verdict(summary['ratio'] <= GOAL)}"
        )


def _verdict(met: bool) -> str:
    return "(met)" if met else "(MISSED)"


def keep(options: argparse.Namespace, found: dict[str, Any]) -> None:
    how = disperse.conditions(options.note)
    how |= {
        "command": how["command"].replace("disperse.py", Path(__file__).name),
        "threads": "1 for each node",
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "versions": {name: disperse._version(name) for name in PACKAGES},
    }
    part = "overhead" if options.overhead else "demo" if options.arms is None else f"demo: {','.join(options.arms)}"
    whole = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    whole[part] = found | {"conditions": how}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
