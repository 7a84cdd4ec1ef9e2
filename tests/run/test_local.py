"""The local engine on graphs of real, quick commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from untax.errors import UntaxError
from untax.manifest import digest_file, write_manifest
from untax.run.local import chain_lengths, make_room, resources
from untax.run.process import environment


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
    deadline = time.time() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]:
        assert time.time() < deadline, "the training went on after Ctrl-C"
        time.sleep(0.05)
    said = run_nodes([nodes[0], make_node("slow", ["done"])])
    assert "done: finished before" in said
    assert order(tmp_path) == ["done", "slow"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux only")
def test_a_killed_runner_takes_its_commands_along(tmp_path, make_node):
    make_node("a")
    runner = (
        "import sys, time; from pathlib import Path\n"
        "from untax.recipes.graph import Node\n"
        "from untax.run.lock import folder_lock\n"
        "from untax.run.process import environment, start\n"
        "node = Node('a', 'merge', (sys.executable, '-c', 'import time; time.sleep(60)'), ('outputs/a',))\n"
        "with folder_lock(Path('.untax/lock')) as lock:\n"
        "    running = start(node, Path('.'), Path('log'), variables=environment(1, ()), gpus=(), lock=lock)\n"
        "    print(running.process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", runner], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    deadline = time.time() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]:
        assert time.time() < deadline, "the command outlived its runner"
        time.sleep(0.05)


def as_training(node):
    return type(node)(**{**node.__dict__, "kind": "train"})


def aside(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob(".untax/replaced/**/*") if path.is_file())


def finished(out: Path, weights: str) -> Path:
    out.mkdir(parents=True)
    (out / weights).write_text("weights")
    write_manifest(out, what="model", outputs=[weights], started=time.time())
    return out


def test_trained_weights_are_set_aside_and_never_deleted(tmp_path, make_node):
    train, out = as_training(make_node("sft")), tmp_path / "outputs/sft"
    finished(out, "adapter_model.safetensors")
    make_room(train, tmp_path)
    out.mkdir()
    (out / "adapter_model.safetensors").write_text("made by another tool")
    make_room(train, tmp_path)
    assert not out.exists()
    assert [name for name in aside(tmp_path) if name.endswith(".safetensors")] == [
        ".untax/replaced/sft-1/adapter_model.safetensors",
        ".untax/replaced/sft-2/adapter_model.safetensors",
    ]


def test_leftovers_without_weights_are_removed(tmp_path, make_node):
    out = tmp_path / "outputs/sft"
    out.mkdir(parents=True)
    (out / "debug.log").write_text("begun")
    make_room(as_training(make_node("sft")), tmp_path)
    assert not out.exists()
    assert aside(tmp_path) == []


def test_a_merge_of_ours_is_removed_and_anything_else_is_set_aside(tmp_path, make_node):
    node, out = make_node("average"), tmp_path / "outputs/average"
    finished(out, "model.safetensors")
    make_room(node, tmp_path)
    assert not out.exists()
    assert aside(tmp_path) == []
    out.mkdir()
    (out / "my_notes.txt").write_text("mine")
    make_room(node, tmp_path)
    assert aside(tmp_path) == [".untax/replaced/average-1/my_notes.txt"]
    (tmp_path / "elsewhere").mkdir()
    out.symlink_to(tmp_path / "elsewhere")
    make_room(node, tmp_path)
    assert not out.exists()
    assert (tmp_path / "elsewhere").is_dir()


def test_checkpoints_are_continued_only_by_the_yaml_that_made_them(tmp_path, make_node):
    train, out = as_training(make_node("sft")), tmp_path / "outputs/sft"
    (out / "checkpoint-10").mkdir(parents=True)
    (out / "checkpoint-10/adapter_model.safetensors").write_text("weights")
    begun = {"config": digest_file(tmp_path / "configs/sft.yaml"), "inputs": {}}
    (out / ".untax-started.json").write_text(json.dumps(begun))
    make_room(train, tmp_path)
    assert (out / "checkpoint-10").is_dir()
    (tmp_path / "configs/sft.yaml").write_text("name: changed\n")
    make_room(train, tmp_path)
    assert not out.exists()
    assert ".untax/replaced/sft-1/checkpoint-10/adapter_model.safetensors" in aside(tmp_path)


def test_a_folder_that_another_process_trains_into_is_left_alone(tmp_path, make_node):
    from untax.training import started

    out = tmp_path / "outputs/sft"
    out.mkdir(parents=True)
    started.claim(out, config="digest", inputs={}, resumes=False)
    try:
        with pytest.raises(UntaxError, match="training into this folder"):
            make_room(as_training(make_node("sft")), tmp_path)
    finally:
        started.release()
    assert out.is_dir()


def test_a_bad_manifest_is_a_reason_to_run_again(tmp_path, make_node, run_nodes):
    nodes = [make_node("a"), make_node("b")]
    run_nodes(nodes)
    (tmp_path / "outputs/a/untax.json").write_text('{"outputs": {}')
    run_nodes(nodes)
    assert sorted(order(tmp_path)) == ["a", "a", "b"]


def test_a_run_on_the_cpu_leaves_gpus_alone():
    assert environment(1, (), cpu_only=True)["CUDA_VISIBLE_DEVICES"] == ""
    assert environment(1, (3,))["CUDA_VISIBLE_DEVICES"] == "3"
    assert resources("cpu").cpu_only


def test_resources_of_a_cpu_are_fixed():
    assert resources("cpu", jobs=3).threads == 1
    assert resources("cpu", jobs=3).jobs == 3
    assert resources("cpu").jobs >= 1
