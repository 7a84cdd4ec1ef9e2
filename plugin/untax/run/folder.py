"""``untax run FOLDER``: the spec's graph, run where it is not finished, and the table at the end."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from untax import __version__
from untax.errors import UntaxError
from untax.files import disk_error
from untax.recipes.graph import Node, Plan
from untax.recipes.plan import plan
from untax.recipes.spec import SPEC_NAME, RunSpec, read_spec
from untax.report.arms import Row, arm_rows, format_table, write_arms
from untax.run.engine import Engine
from untax.run.events import Events, this_host
from untax.run.finish import on_finish
from untax.run.interrupt import orderly
from untax.run.local import LocalWorkers
from untax.run.lock import folder_lock
from untax.run.preflight import check_files, edited, edited_note
from untax.run.process import environment
from untax.run.reads import as_read
from untax.run.record import peaks
from untax.run.resources import Needs, resources, weights_bytes
from untax.run.screen import Screen
from untax.run.selection import Selection
from untax.run.todo import todo
from untax.run.warm import WarmPool
from untax.run.workers import STATE, Workers

ARMS_FILE = "results/arms.json"


@dataclass(frozen=True)
class Options:
    """How a folder is run.

    Attributes:
        jobs: the most nodes at a time.
        threads: of each node.
        gpus: ids of the GPUs to use; those that can be seen by default.
        memory: bytes of main memory to use.
        selection: which nodes.
        keep_going: whether nodes that do not need a failed one are still started.
        rerun_on_version: whether another version of a package is a reason to run again.
        on_finish: a shell command to run at the end.
        warm: whether commands on the CPU may be forked from processes that have imported their packages.
        engine: ``local`` for this machine, ``ray`` for a cluster.
        ray_address: of the cluster; None for what Ray finds.
        ray_wait: seconds to wait for machines that have not joined the cluster yet.
    """

    jobs: int | None = None
    threads: int | None = None
    gpus: tuple[str, ...] | None = None
    memory: int | None = None
    selection: Selection = field(default_factory=Selection)
    keep_going: bool = True
    rerun_on_version: bool = False
    on_finish: str | None = None
    warm: bool = True
    engine: str = "local"
    ray_address: str | None = None
    ray_wait: float = 0.0


def run_folder(folder: Path, options: Options | None = None) -> list[Row] | None:
    """Run what is not finished, and return the rows of the table of arms (None before all are scored).

    Raises:
        UntaxError: no recipe there, the folder is in use, or nodes failed.
    """
    options = options or Options()
    spec = read_spec(folder / SPEC_NAME)
    expanded = plan(spec)
    check_files(expanded, folder, spec.suite)
    nodes = selected(expanded, folder, spec, options)
    status, engine = "failed", None
    with orderly():
        try:
            with folder_lock(folder / STATE / "lock") as lock, Screen(nodes, folder) as screen:
                engine = Engine(
                    nodes,
                    folder,
                    spec.suite,
                    _workers(folder, spec, options, lock.fileno(), nodes, expanded),
                    screen,
                    Events(folder),
                    keep_going=options.keep_going,
                    rerun_on_version=options.rerun_on_version,
                )
                _introduce(engine, expanded)
                _run(engine)
                rows = _rows(engine, spec, expanded)
            status = "done"
            return rows
        except UntaxError:
            if engine:
                _show_rest(engine, spec, expanded)
            raise
        except (KeyboardInterrupt, SystemExit):
            status = "interrupted"
            raise
        finally:
            # Free of lock and live view: the command may run this very folder again.
            if engine and options.on_finish:
                on_finish(options.on_finish, folder, status=status, failed=engine.failed, screen=engine.screen)


def _rows(engine: Engine, spec: RunSpec, expanded: Plan) -> list[Row] | None:
    partial = len(engine.nodes) < len(expanded.nodes)
    return None if partial and todo(expanded, engine.folder, spec.suite) else table(spec, expanded, engine.folder)


def _show_rest(engine: Engine, spec: RunSpec, expanded: Plan) -> None:
    """After a failure, the table of the arms that were scored all the same."""
    done = {output for node in engine.nodes if node.name in engine.done for output in node.outputs}
    scored = [model for model in expanded.models if model.results in done]
    if spec.suite is None or len(scored) < 2 or scored[0] != expanded.models[0]:
        return
    rows = table(spec, dataclasses.replace(expanded, models=tuple(scored)), engine.folder)
    missing = ", ".join(dict.fromkeys(model.arm for model in expanded.models if model not in scored))
    engine.screen.say(f"\n{format_table(rows or [])}\n\nNot in this table, since it could not be made: {missing}\n")


def _workers(
    folder: Path, spec: RunSpec, options: Options, lock: int, nodes: Sequence[Node], expanded: Plan
) -> Workers:
    needs = Needs(weights_bytes(spec.base, folder), peaks(folder))
    limits = resources(
        spec.device, jobs=options.jobs, threads=options.threads, gpus=options.gpus, memory=options.memory
    )
    if options.engine == "ray":
        from untax.run.ray_workers import RayWorkers

        return RayWorkers(folder, limits, options.ray_address, needs=needs, wait=options.ray_wait)
    if not (options.warm and limits.cpu_only):
        return LocalWorkers(folder, limits, needs, lock)
    warm = WarmPool(folder, environment(limits.threads, cpu_only=True), pass_fds=(lock,))
    due = todo(expanded, folder, spec.suite, rerun_on_version=options.rerun_on_version)
    names = {node.name for node in nodes}
    warm.expect(one.node for one in due if one.node.name in names)
    return LocalWorkers(folder, limits, needs, lock, warm)


def selected(expanded: Plan, folder: Path, spec: RunSpec, options: Options) -> tuple[Node, ...]:
    """The nodes that this run is about.

    Raises:
        UntaxError: a selected node needs one that is neither finished nor selected.
    """
    nodes = as_read(expanded, folder).nodes
    chosen = options.selection.of(nodes)
    if len(chosen) == len(nodes):
        return chosen
    names = {node.name for node in chosen}
    due = {one.node.name: one.reason for one in todo(expanded, folder, spec.suite) if one.certain}
    missing = {need: node.name for node in chosen for need in node.needs if need in due and need not in names}
    if missing:
        need, name = next(iter(missing.items()))
        raise UntaxError(
            f"{name} needs {need}, which is not finished and not selected ({due[need]}).",
            where="--only, --from, --until",
            fix=f"Leave out what narrows the selection, or run this first: untax run {folder} --until {need}",
        )
    return chosen


def _run(engine: Engine) -> None:
    """Run the engine, with a first and a last line in the record."""
    status, started = "failed", time.monotonic()
    engine.events.write(
        "run-started",
        untax=__version__,
        host=this_host(),
        nodes=len(engine.nodes),
        workers=engine.workers.describe(),
    )
    try:
        engine.run()
        status = "done"
    except (KeyboardInterrupt, SystemExit):
        status = "interrupted"
        engine.screen.say(
            f"interrupted: {len(engine.done)} of {len(engine.nodes)} nodes are finished; the same command goes on"
        )
        raise
    except OSError as error:
        raise disk_error(error, Path(error.filename or engine.folder)) from error
    finally:
        engine.workers.close()
        engine.events.write(
            "run-ended",
            status=status,
            done=len(engine.done),
            failed=len(engine.failed),
            wall_seconds=round(time.monotonic() - started, 3),
        )
        if engine.events.problem:
            engine.screen.say(f"{engine.events.path} is not complete: {engine.events.problem}")


def table(spec: RunSpec, expanded: Plan, folder: Path) -> list[Row] | None:
    """Write ``results/arms.json`` and return its rows; None when the recipe names no suite."""
    if spec.suite is None:
        return None
    base, *models = expanded.models
    rows = arm_rows(
        [(model.arm, model.scale, folder / model.results) for model in models], folder / base.results, spec.suite
    )
    write_arms(rows, folder / ARMS_FILE)
    return rows


def _introduce(engine: Engine, expanded: Plan) -> None:
    folder, screen, count = engine.folder, engine.screen, len(engine.nodes)
    names = edited(expanded, folder)
    if names:
        screen.say(edited_note(names))
    some = "" if count == len(expanded.nodes) else f" of {len(expanded.nodes)}"
    screen.say(f"{count}{some} nodes in {folder}, {engine.workers.describe()}; logs in {folder / STATE / 'logs'}")
