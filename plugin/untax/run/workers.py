"""What the engine asks of whatever runs commands: this machine, or a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from untax.recipes.graph import Node

STATE = ".untax"
"""The folder of a run folder in which its runner keeps its own files."""


@dataclass(frozen=True)
class Usage:
    """What a command took.

    Attributes:
        wall_seconds: from its start to its end.
        cpu_seconds: user and system time of it and of the processes that it waited for.
        peak_memory: bytes of main memory that it and its children held at once.
        gpu_seconds: wall time times the GPUs that were its own.
        gpu_peak_memory: bytes on those GPUs at once, or None where they do not say.
        energy_joules: of those GPUs, or None where they do not say.
    """

    wall_seconds: float
    cpu_seconds: float = 0.0
    peak_memory: int = 0
    gpu_seconds: float = 0.0
    gpu_peak_memory: int | None = None
    energy_joules: float | None = None


@dataclass(frozen=True)
class Ended:
    """A command's end.

    Attributes:
        code: its exit status; negative: the signal that killed it.
        usage: what it took.
        attempts: how often it was started, on other machines too.
        problem: why it could not be run to an end at all, if so.
    """

    code: int
    usage: Usage
    attempts: int = 1
    problem: str | None = None


class Running(Protocol):
    """A node at work."""

    @property
    def node(self) -> Node:
        """The node."""

    @property
    def log(self) -> Path:
        """Where its output goes."""

    @property
    def where(self) -> str:
        """The machine it is on; empty for this one or while that is not known."""

    @property
    def gpus(self) -> tuple[str, ...]:
        """The ids of its GPUs."""

    @property
    def note(self) -> str:
        """What its start found and kept, such as a checkpoint; empty if nothing."""

    @property
    def seconds(self) -> float:
        """How long it has been running; 0 while it waits for a place."""

    def poll(self) -> Ended | None:
        """Its end, or None while it is at work."""


class Workers(Protocol):
    """A place where commands run."""

    def describe(self) -> str:
        """One phrase for the first line: what is there."""

    def check(self, nodes: Sequence[Node]) -> None:
        """Refuse a graph with a node that could never start.

        Raises:
            UntaxError: naming the nodes, and what is there.
        """

    def start(self, node: Node) -> Running | None:
        """Start a node's command, or return None while there is no room for it.

        Raises:
            UntaxError: it cannot be started at all.
        """

    def stop(self, running: Sequence[Running]) -> None:
        """End these nodes and all their processes; returns when they are gone."""

    def close(self) -> None:
        """Give back what was taken besides the nodes."""


def log_path(folder: Path, node: Node) -> Path:
    """A node's log."""
    return folder / STATE / "logs" / f"{node.name}.log"


def progress_path(folder: Path, node: Node) -> Path:
    """The file in which a node's command says how far it is."""
    return folder / STATE / "progress" / f"{node.name}.json"
