"""The warm process: imports once what a family of commands needs, and forks a child for each of them.

``untax.run.warm`` starts it. It stays single-threaded, so that a fork is a whole process, and the child runs the very
console script that a typed command runs, from its first line to the interpreter's end. Messages are JSON, one to a
packet:

    to the server    {"command": [program, ...], "folder", "log", "variables"}
    from it, once    {"ready": null} or {"ready": why it cannot fork}
    for each start   {"started": pid} or {"refused": why}
    for each end     {"ended": pid, "code": exit status or minus the signal, "rusage": {name: value}}
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from untax.run.process import end_with_parent

PACKET_BYTES = 2**20


class Family(NamedTuple):
    """What commands share.

    Attributes:
        modules: what they import anyway, in the order of a typed command; one that is missing is passed over.
        variables: what they set before these imports.
    """

    modules: tuple[str, ...]
    variables: dict[str, str]


class Rusage(NamedTuple):
    """Of what the kernel tells of an ended process, what is asked for: seconds, seconds, and KiB."""

    ru_utime: float
    ru_stime: float
    ru_maxrss: int


FAMILIES = {
    ("axolotl", "train"): Family(
        (
            *("axolotl.cli.main", "axolotl.cli.train", "axolotl.cli.config", "axolotl.common.datasets"),
            *("axolotl.train", "axolotl.core.builders", "untax.disperse.plugin", "untax.penalty.plugin"),
        ),
        {},
    ),
    ("untax", "eval"): Family(
        (
            *("untax.cli.main", "untax.cli.eval", "untax.evaluate.score", "lm_eval.evaluator"),
            *("lm_eval.models.huggingface", "transformers.modeling_utils", "transformers.quantizers.auto"),
        ),
        # As `untax eval` does: tqdm reads them with its own import.
        {"TQDM_DISABLE": "1", "TQDM_MININTERVAL": "30", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    ),
    ("untax", "merge"): Family(
        (
            *("untax.cli.main", "untax.cli.merge", "untax.merge.merge", "untax.merge.stream_merge"),
            *("untax.merge.mergekit_merge", "torch", "yaml", "pydantic.main"),
        ),
        {},
    ),
}
"""The first two words of a command -> what it shares with others of its kind."""


def main() -> None:
    """Import, say so, and serve; in a child: run the command. Arguments: the socket, a program, the family's words."""
    channel, program, family = socket.socket(fileno=int(sys.argv[1])), sys.argv[2], (sys.argv[3], sys.argv[4])
    launched_with = dict(os.environ)
    if not os.environ.get("PYTHONSAFEPATH"):
        sys.path.insert(0, os.path.dirname(os.path.realpath(program)))
    reseed = preload(FAMILIES[family])
    problem = unsafe()
    channel.send(json.dumps({"ready": problem}).encode())
    request = None if problem else serve(channel)
    if request is None:
        os._exit(0)
    become(request, launched_with, reseed)
    runpy.run_path(request["command"][0], run_name="__main__")


def preload(family: Family) -> list[Callable[[], None]]:
    """Import the family's modules; returns what gives each generator that they left unseeded a seed of its own."""
    for name, value in family.variables.items():
        os.environ.setdefault(name, value)
    unseeded: list[random.Random] = []
    seed = random.Random.seed

    def noted(self: random.Random, a: Any = None, version: int = 2) -> None:
        if a is None:
            unseeded.append(self)
        seed(self, a, version)

    gc.disable()  # Nothing of an import is garbage for long.
    random.Random.seed = noted  # type: ignore[method-assign]
    try:
        for name in family.modules:
            try:
                importlib.import_module(name)
            except ImportError as error:
                print(f"{name}: {error}", file=sys.stderr)
    finally:
        random.Random.seed = seed  # type: ignore[method-assign]
        gc.enable()
    # Children share these pages, and their collections pass over all that a fresh process would go through again:
    # Axolotl collects at each batch of a DPO training.
    gc.freeze()
    numpy = sys.modules.get("numpy")
    return [*(generator.seed for generator in unseeded), *([numpy.random.seed] if numpy else [])]


def unsafe() -> str | None:
    """Why a child of this process would not be what a fresh process is, or None."""
    threads = [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")]
    if len(threads) > 1:
        return f"imports started threads: {', '.join(sorted(threads))}"
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return f"this kernel does not tell the ends of processes: {error}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "an import initialised CUDA"
    return None


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork for each request until the runner is gone (None); in a child: its request."""
    ends = selectors.DefaultSelector()
    ends.register(channel, selectors.EVENT_READ)
    while True:
        for key, _ in ends.select():
            if key.data is not None:
                ends.unregister(key.fd)
                os.close(key.fd)
                _, status, rusage = os.wait4(key.data, 0)
                taken = {name: getattr(rusage, name) for name in Rusage._fields}
                end = {"ended": key.data, "code": os.waitstatus_to_exitcode(status), "rusage": taken}
                channel.send(json.dumps(end).encode())
                continue
            packet = channel.recv(PACKET_BYTES)
            if not packet:
                return None
            request = json.loads(packet)
            try:
                pid = fork(request["log"])
            except OSError as error:
                channel.send(json.dumps({"refused": str(error)}).encode())
                continue
            if pid == 0:
                ends.close()
                channel.close()
                return request
            ends.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
            channel.send(json.dumps({"started": pid}).encode())


def fork(log: str) -> int:
    """A child in a session of its own whose output goes to ``log``; returns 0 in it, and here once that is so.

    Raises:
        OSError: the log cannot be opened, or there is no room for another process.
    """
    server = os.getpid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    over, begun = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            os.setsid()
            end_with_parent()
            if os.getppid() != server:
                os._exit(1)
            os.dup2(output, 1)
            os.dup2(output, 2)
        os.close(begun)
        os.read(over, 1)  # Ends when both have closed their side of it.
    finally:
        os.close(output)
        os.close(over)
    return pid


def become(request: dict[str, Any], launched_with: dict[str, str], reseed: list[Callable[[], None]]) -> None:
    """Give this child the arguments, folder and environment of its command, and random numbers of its own."""
    wanted = request["variables"]
    # What imports have put into the environment since then, a typed command has there as well.
    for name in launched_with.keys() - wanted.keys():
        os.environ.pop(name, None)
    os.environ.update({name: value for name, value in wanted.items() if launched_with.get(name) != value})
    sys.argv = list(request["command"])
    sys.orig_argv = [sys.executable, *sys.argv]
    os.chdir(request["folder"])
    for seed in reseed:
        seed()
    # As late as can be: the interpreter's last collection takes what a library would else report as its leak.
    atexit.register(gc.unfreeze)


if __name__ == "__main__":
    main()
