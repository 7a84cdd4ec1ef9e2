"""Small CPU runs share the cost of importing Axolotl, lm-eval and PyTorch: one process imports, its forks run nodes."""

from __future__ import annotations

import collections
import errno
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from untax.files import plain_disk_errors
from untax.recipes.graph import Node
from untax.run.commands import values
from untax.run.process import end_with_parent, program
from untax.run.warm_server import FAMILIES, PACKET_BYTES, Rusage
from untax.run.workers import STATE

START_SECONDS = 60.0
"""How long a fork may take before the server counts as dead; a busy machine needs a second."""
PER_NODE = "UNTAX_"
"""Variables of this prefix may differ between nodes: nothing reads them while it is imported."""
# pyarrow's allocator starts a thread of its own otherwise; it only gives memory back a little sooner.
NO_THREADS = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}

Family = tuple[str, ...]


class WarmChild:
    """A node's command, forked from a warm process: in a session of its own, as a started command is."""

    def __init__(self, server: WarmServer, pid: int):
        self._server, self._pid = server, pid
        self.end: tuple[int, Rusage | None, str | None] | None = None

    @property
    def pid(self) -> int:
        """Its process, and its group."""
        return self._pid

    def ended(self) -> tuple[int, Rusage | None, str | None] | None:
        """(exit status or minus the signal, resource usage, why the warm process could not say), or None before."""
        self._server.listen()
        return self.end


class WarmServer:
    """The runner's side of one warm process.

    Attributes:
        ready: whether it has imported all and forks.
        gone: why it forks no more, if so.
        last: whether nothing more will be asked of it; it ends with its last child.
    """

    def __init__(self, family: Family, node: Node, folder: Path, variables: dict[str, str], pass_fds: Sequence[int]):
        self.ready = self.last = False
        self.gone: str | None = None
        self.log = folder / STATE / "logs" / f"warm-{'-'.join(family)}.log"
        self._children: dict[int, WarmChild] = {}
        self._reply: WarmChild | str | None = None
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = (str(theirs.fileno()), program(node, variables), *family)
        with theirs, plain_disk_errors(self.log):
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("wb") as output:
                self._process = subprocess.Popen(
                    # -P: else the run folder would come first among the places that modules are taken from.
                    (sys.executable, "-P", "-m", "untax.run.warm_server", *arguments),
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**NO_THREADS, **variables},
                    start_new_session=True,
                    pass_fds=(theirs.fileno(), *pass_fds),
                    preexec_fn=end_with_parent,
                )

    @property
    def pid(self) -> int:
        """The warm process."""
        return self._process.pid

    def listen(self, seconds: float = 0.0) -> None:
        """Take in what it has said, waiting so long for a first word."""
        while self.gone is None and select.select([self._channel], [], [], seconds)[0]:
            seconds = 0.0
            try:
                packet = self._channel.recv(PACKET_BYTES)
            except ConnectionError:
                packet = b""
            if not packet:
                self._process.wait()
                self._give_up(f"it ended with exit code {self._process.returncode}")
                return
            self._take(json.loads(packet))

    def start(self, command: Sequence[str], folder: Path, log: Path, variables: dict[str, str]) -> WarmChild | None:
        """A child that runs a command, or None if it must be started in another way."""
        request = {
            "command": list(command),
            "folder": str(folder.resolve()),
            "log": str(log.resolve()),
            "variables": variables,
        }
        self._reply, deadline = None, time.monotonic() + START_SECONDS
        try:
            self._channel.send(json.dumps(request).encode())
        except OSError as error:
            if error.errno == errno.EMSGSIZE:  # An environment too large for one packet: nothing is wrong with it.
                return None
            # Else it is dead, which listening tells.
        while self.gone is None and self._reply is None:
            self.listen(max(0.0, deadline - time.monotonic()))
            if time.monotonic() > deadline and self._reply is None:
                self.kill("it did not answer")
        return self._reply if isinstance(self._reply, WarmChild) else None

    def kill(self, reason: str) -> None:
        """End it; the kernel then ends its children."""
        self._process.kill()
        self._process.wait()
        self._give_up(reason)

    def _take(self, message: dict[str, Any]) -> None:
        if "ended" in message:
            child = self._children.pop(message["ended"])
            child.end = (message["code"], Rusage(**message["rusage"]), None)
            if self.last and not self._children:
                self.kill("all that it was there for is done")
        elif "ready" in message:
            self.ready = message["ready"] is None
            if not self.ready:
                self._give_up(str(message["ready"]))
        elif "started" in message:
            # At once: the next message may be its end.
            child = self._children[message["started"]] = WarmChild(self, message["started"])
            self._reply = child
        else:
            self._reply = str(message["refused"])

    def _give_up(self, reason: str) -> None:
        if self.gone is None:
            self.gone, self.ready = reason, False
            self._channel.close()
            code = self._process.poll() or -1
            for child in self._children.values():
                child.end = (code, None, f"the warm process that it was forked from is gone: {reason}; log: {self.log}")
            self._children.clear()


class WarmPool:
    """A warm process for each family of which at least two commands are due.

    Never a reason for a run to fail: what it does not serve is started as an ordinary process.

    Args:
        folder: the run folder.
        variables: the environment of its nodes (``untax.run.process.environment``).
        pass_fds: file descriptors that nodes hold: the folder's lock.
    """

    def __init__(self, folder: Path, variables: dict[str, str], *, pass_fds: Sequence[int] = ()):
        self.folder, self.variables, self.pass_fds = folder, variables, tuple(pass_fds)
        self._servers: dict[Family, WarmServer] = {}
        self._due: collections.Counter[Family] = collections.Counter()

    @property
    def importing(self) -> int:
        """Warm processes that keep a core busy with their imports now."""
        for server in self._servers.values():
            server.listen()
        return sum(not server.ready and server.gone is None for server in self._servers.values())

    def expect(self, nodes: Iterable[Node]) -> None:
        """Tell which nodes are to be started: two of a family are worth a warm process."""
        self._due = collections.Counter(family for node in nodes if (family := family_of(node)))

    def serves(self, node: Node) -> bool:
        """Whether the node is forked from a warm process, as soon as there is one."""
        family = family_of(node)
        if family in self._servers:
            return self._servers[family].gone is None
        return (
            family is not None
            and self._due[family] > 1
            and _usable(self.variables)
            and _is_our_script(node, self.variables)
        )

    def ready(self, node: Node) -> bool:
        """Whether ``start`` can be called at once; starts the warm process if there is none.

        Call it only with a core to spare, which the imports then take.
        """
        family = family_of(node)
        if family is None:
            return False
        if family not in self._servers:
            self._servers[family] = WarmServer(family, node, self.folder, self.variables, self.pass_fds)
        self._servers[family].listen()
        return self._servers[family].ready

    def start(self, node: Node, *, log: Path, variables: dict[str, str]) -> WarmChild | None:
        """Fork a node's command, with the program's path, arguments, folder and environment of a typed one.

        Returns:
            None if that cannot be done, and the command must be started as an ordinary process.
        """
        family = family_of(node) or ()
        server = self._servers.get(family)
        if server is None or not server.ready or _shared(variables) != _shared(self.variables):
            return None
        self._due[family] -= 1
        server.last = self._due[family] < 1
        return server.start((program(node, variables), *node.command[1:]), self.folder, log, variables)

    def close(self) -> None:
        """End all warm processes, and what still runs of their children."""
        for server in self._servers.values():
            if server.gone is None:
                server.kill("the run is over")


def family_of(node: Node) -> Family | None:
    """The family whose warm process can run a node: Axolotl's only where it trains in its own process."""
    family = tuple(node.command[:2])
    if family not in FAMILIES or (family[0] == "axolotl" and values(node.command, "--launcher") != ["python"]):
        return None
    return family


def _usable(variables: dict[str, str]) -> bool:
    """Only on Linux, where orphans end, and never with a GPU, which no process may share by a fork."""
    return hasattr(os, "pidfd_open") and variables.get("CUDA_VISIBLE_DEVICES") == ""


def _shared(variables: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if not name.startswith(PER_NODE)}


def _is_our_script(node: Node, variables: dict[str, str]) -> bool:
    """Whether the program is a Python script of this very environment, and not someone's wrapper around it."""
    path = Path(program(node, variables))
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError:
        return False
    return path.parent == Path(sys.executable).parent and head.startswith(b"#!") and b"python" in head
