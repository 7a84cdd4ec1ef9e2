"""The engine on graphs of real, quick commands on this machine."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from untax.errors import UntaxError
from untax.run.engine import Engine, chain_lengths
from untax.run.events import Events, read_events
from untax.run.local import LocalWorkers
from untax.run.lock import folder_lock
from untax.run.resources import Needs, Resources
from untax.run.screen import Screen


def order(folder: Path) -> list[str]:
    return (folder / "order.txt").read_text().split()


def test_needs_run_first_and_a_second_call_runs_nothing(tmp_path, make_node, run_nodes):
    nodes = [make_node("c", ["a", "b"]), make_node("a"), make_node("b", ["a"])]
    run_nodes(nodes)
    assert order(tmp_path) == ["a", "b", "c"]
    said = run_nodes(nodes)
    assert order(tmp_path) == ["a", "b", "c"]
    assert said.count("finished before") == 3


def test_only_what_changed_runs_again(tmp_path, make_node, run_nodes):
    nodes = [make_node("a"), make_node("b", ["a"]), make_node("c")]
    run_nodes(nodes)
    (tmp_path / "outputs/b/model.safetensors").write_text("cut")
    (tmp_path / "configs/c.yaml").write_text("name: changed\n")
    said = run_nodes(nodes)
    assert sorted(order(tmp_path)[3:]) == ["b", "c"]
    assert "outputs/b: model.safetensors was changed or removed" in said
    assert "configs/c.yaml was changed" in said


def test_longest_chain_starts_first(tmp_path, make_node, run_nodes):
    nodes = [make_node("alone"), make_node("end", ["middle"]), make_node("middle", ["start"]), make_node("start")]
    lengths = chain_lengths(tuple(nodes))
    assert lengths["start"] > lengths["middle"] > lengths["end"] == lengths["alone"]
    run_nodes(nodes, jobs=1)
    assert order(tmp_path)[0] == "start"


@pytest.mark.parametrize("refused", ["untax.run.process.Guard", "untax.run.engine.unfinished"])
def test_what_the_system_refuses_one_node_stops_no_other(tmp_path, make_node, run_nodes, monkeypatch, refused):
    module, name = refused.rsplit(".", 1)
    real, calls = getattr(sys.modules[module], name), []

    def first_is_refused(*args, **kwargs):
        calls.append(args)
        if len(calls) == 1:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return real(*args, **kwargs)

    monkeypatch.setattr(refused, first_is_refused)
    with pytest.raises(UntaxError, match=r"(?s)These nodes failed:.*a: .*temporarily unavailable") as error:
        run_nodes([make_node("a"), make_node("b")], jobs=1)
    assert "b:" not in error.value.problem
    assert order(tmp_path)[-1] == "b"


def test_several_at_a_time(tmp_path, make_node, run_nodes):
    code = (
        "import time, pathlib, sys; p = pathlib.Path('here-' + sys.argv[0]);"
        "name = {!r}; pathlib.Path(name).touch(); other = {!r}; end = time.time() + 20\n"
        "while not pathlib.Path(other).exists():\n"
        "    assert time.time() < end, 'the other one never ran beside this one'\n"
        "    time.sleep(0.05)\n"
        "import subprocess; subprocess.check_call([sys.executable, 'work.py', {!r}, '0'])"
    )
    nodes = [
        make_node("a", code=code.format("flag-a", "flag-b", "a")),
        make_node("b", code=code.format("flag-b", "flag-a", "b")),
    ]
    run_nodes(nodes, jobs=2)
    assert sorted(order(tmp_path)) == ["a", "b"]


def test_a_failed_node_shows_its_log_and_stops_only_what_needs_it(tmp_path, make_node, run_nodes, capsys):
    broken = make_node("broken", code="print('the reason'); raise SystemExit(3)")
    nodes = [broken, make_node("after", ["broken"]), make_node("later", ["after"]), make_node("independent")]
    with pytest.raises(UntaxError) as caught:
        run_nodes(nodes)
    assert "broken: ended with exit code 3" in str(caught.value)
    assert "after: not run, since it needs broken" in str(caught.value)
    assert "later: not run, since it needs after" in str(caught.value)
    assert order(tmp_path) == ["independent"]


def test_exit_code_0_without_a_manifest_is_a_failure(tmp_path, make_node, run_nodes):
    with pytest.raises(UntaxError, match="ended well, but outputs/liar: not made yet"):
        run_nodes([make_node("liar", code="pass")])


def test_a_command_that_does_not_exist(make_node, run_nodes):
    node = make_node("a")
    with pytest.raises(UntaxError, match="no-such-command"):
        run_nodes([type(node)(**{**node.__dict__, "command": ("no-such-command", "x")})])


def test_interrupt_stops_the_whole_group_and_a_second_run_continues(tmp_path, make_node, run_nodes):
    grandchild = (
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "pathlib.Path('grandchild.pid').write_text(str(child.pid)); child.wait()"
    )
    nodes = [make_node("done"), make_node("slow", ["done"], code=grandchild)]

    def interrupt() -> None:
        while not (tmp_path / "grandchild.pid").exists() or not (tmp_path / "grandchild.pid").read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_nodes(nodes)
    pid = int((tmp_path / "grandchild.pid").read_text())
    await_end(pid, "the training went on after Ctrl-C")
    said = run_nodes([nodes[0], make_node("slow", ["done"])])
    assert "done: finished before" in said
    assert order(tmp_path) == ["done", "slow"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux only")
def test_a_killed_runner_takes_its_commands_along(tmp_path):
    """Those too that its commands have started, as `accelerate launch` starts ranks."""
    command = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, file=open('pid.part', 'w'), flush=True)\n"
        "import os; os.replace('pid.part', 'pid'); time.sleep(60)"
    )
    (tmp_path / "command.py").write_text(command)
    runner = (
        "import sys, time; from pathlib import Path\n"
        "from untax.recipes.graph import Node\n"
        "from untax.run.lock import folder_lock\n"
        "from untax.run.process import environment, start\n"
        "node = Node('a', 'merge', (sys.executable, 'command.py'), ('outputs/a',))\n"
        "with folder_lock(Path('.untax/lock')) as lock:\n"
        "    running = start(node, Path('.'), variables=environment(1), pass_fds=(lock.fileno(),))\n"
        "    while not Path('pid').exists(): time.sleep(0.02)\n"
        "    print(running.process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", runner], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(process.stdout.readline()), int((tmp_path / "pid").read_text())]
        process.kill()
    for pid in pids:
        await_end(pid, "it outlived the runner")
    with folder_lock(tmp_path / ".untax/lock"):
        pass


def await_end(pid: int, otherwise: str) -> None:
    """A process that nobody waits for stays as a zombie, which is an end too."""
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def test_a_bad_manifest_is_a_reason_to_run_again(tmp_path, make_node, run_nodes):
    nodes = [make_node("a"), make_node("b")]
    run_nodes(nodes)
    (tmp_path / "outputs/a/untax.json").write_text('{"outputs": {}')
    run_nodes(nodes)
    assert sorted(order(tmp_path)) == ["a", "a", "b"]


def test_after_a_failure_nothing_more_is_started_if_asked(tmp_path, make_node, run_nodes):
    """What is running is finished: GPU hours are not thrown away."""
    wait_for_it = (
        "import pathlib, time, subprocess, sys; end = time.time() + 20\n"
        "while not pathlib.Path('failed').exists(): assert time.time() < end; time.sleep(0.02)\n"
        "time.sleep(0.3); subprocess.check_call([sys.executable, 'work.py', 'beside', '0'])"
    )
    nodes = [
        make_node("broken", code="open('failed', 'w'); raise SystemExit(3)"),
        make_node("beside", code=wait_for_it),
        make_node("later"),
    ]
    with pytest.raises(UntaxError) as caught:
        run_nodes(nodes, keep_going=False)
    assert order(tmp_path) == ["beside"]
    assert "later: not run after a failure" in str(caught.value)


def test_needs_outside_the_selection_are_taken_for_finished(tmp_path, make_node, run_nodes):
    nodes = [make_node("a"), make_node("b", ["a"]), make_node("c", ["b"])]
    run_nodes(nodes[1:])
    assert order(tmp_path) == ["b", "c"]


def test_nodes_that_would_not_fit_into_memory_together_run_one_after_the_other(tmp_path, make_node, run_nodes):
    code = (
        "import subprocess, sys, time, pathlib; name = {!r}\n"
        "assert not list(pathlib.Path().glob('here-*')), 'two at a time'\n"
        "here = pathlib.Path('here-' + name); here.touch(); time.sleep(0.3); here.unlink()\n"
        "subprocess.check_call([sys.executable, 'work.py', name, '0'])"
    )
    nodes = [make_node(name, code=code.format(name)) for name in "abc"]
    measured = {"a": 6 * 2**30, "b": 5 * 2**30, "c": 100 * 2**30}
    run_nodes(nodes, jobs=3, memory=10 * 2**30, needs=Needs(measured=measured))
    assert sorted(order(tmp_path)) == ["a", "b", "c"]


def test_a_killed_command_is_told_with_its_memory(make_node, run_nodes):
    with pytest.raises(UntaxError, match=r"a: was killed by SIGKILL \(it held [\d.]+ GiB of main memory at most"):
        run_nodes([make_node("a", code="import os; os.kill(os.getpid(), 9)")])


def test_what_a_failed_command_leaves_running_is_ended(tmp_path, make_node, run_nodes):
    orphan = (
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "pathlib.Path('orphan.pid').write_text(str(child.pid)); raise SystemExit(1)"
    )
    with pytest.raises(UntaxError, match="exit code 1"):
        run_nodes([make_node("a", code=orphan)])
    pid = int((tmp_path / "orphan.pid").read_text())
    await_end(pid, "it goes on writing into the folder")


def test_the_record_of_a_run(tmp_path, make_node, run_nodes):
    nodes = [make_node("a"), make_node("b", ["a"], code="raise SystemExit(4)"), make_node("c", ["b"])]
    for _ in range(2):
        with pytest.raises(UntaxError):
            run_nodes(nodes)
    found = [(event["event"], event["node"]) for event in read_events(tmp_path)]
    assert found[:2] == [("node-started", "a"), ("node-ended", "a")]
    assert found[2:5] == [("node-started", "b"), ("node-failed", "b"), ("node-blocked", "c")]
    assert found[5] == ("node-kept", "a")
    ended = next(event for event in read_events(tmp_path) if event["event"] == "node-ended")
    assert ended["wall_seconds"] > 0
    assert ended["cpu_seconds"] > 0
    assert ended["peak_memory"] > 10**6
    assert ended["log"] == ".untax/logs/a.log"
    assert (tmp_path / ended["log"]).read_text().startswith("$ ")
    assert (tmp_path / ".untax/logs/b.log.1").exists(), "the log of the attempt before is kept"


def test_logs_are_recorded_from_the_folder_on_however_that_is_named(tmp_path, make_node, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    folder, nodes = Path(tmp_path.name), [make_node("a")]
    # Workers on other machines, as Ray's, know the folder by its absolute path.
    with Screen(nodes, folder) as screen:
        Engine(nodes, folder, None, LocalWorkers(tmp_path, Resources(1, 1)), screen, Events(folder)).run()
    assert [event["log"] for event in read_events(folder) if event["event"] == "node-ended"] == [".untax/logs/a.log"]
