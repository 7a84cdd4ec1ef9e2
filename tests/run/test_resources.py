"""What a machine has and what nodes need."""

from __future__ import annotations

import sys

import pytest

from untax.errors import UntaxError
from untax.recipes.graph import Node
from untax.run.process import environment
from untax.run.resources import GIB, TOOLS_BYTES, Needs, Resources, check_gpus, resources, visible_gpus


def test_a_run_on_the_cpu_leaves_gpus_alone():
    assert environment(1, cpu_only=True)["CUDA_VISIBLE_DEVICES"] == ""
    assert environment(1, ("3",))["CUDA_VISIBLE_DEVICES"] == "3"
    assert resources("cpu").cpu_only


def test_resources_of_a_cpu_are_fixed():
    assert resources("cpu", jobs=3).threads == 1
    assert resources("cpu", jobs=3).jobs == 3
    assert resources("cpu").jobs >= 1


def test_gpus_for_a_recipe_of_the_cpu_are_refused():
    with pytest.raises(UntaxError, match="GPUs 0, 1 are named, and this recipe is one for the CPU"):
        resources("cpu", gpus=["0", "1"])


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    """A process that sees none would compute on the CPU for a week."""

    class Driver:
        class NVMLError(Exception): ...

        def nvmlInit(self) -> None: ...

        def nvmlShutdown(self) -> None: ...

        def nvmlDeviceGetCount(self) -> int:
            return 2

    training = Node("sft", "train", ("axolotl",), ("outputs/sft",))
    monkeypatch.setitem(sys.modules, "pynvml", Driver())
    check_gpus([training], Resources(1, 1, ("0", "1")))
    with pytest.raises(UntaxError, match="There is no GPU 2: this machine has 2, counted from 0"):
        check_gpus([training], Resources(1, 1, ("1", "2")))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    check_gpus([training], Resources(1, 1, ("7",)))
    with pytest.raises(UntaxError, match="sft: 1 GPUs are wanted at once, and none can be seen"):
        check_gpus([training], Resources(1, 1))


def test_what_a_node_took_counts_more_than_what_is_estimated():
    training, merge = Node("sft", "train", ("x",), ("o",)), Node("dtm", "merge", ("x",), ("o",))
    needs = Needs(base=2 * GIB, measured={"sft": 5 * GIB})
    assert needs.memory(training) == 5 * GIB
    assert needs.memory(merge) == TOOLS_BYTES + 2 * GIB
    assert Needs(base=2 * GIB).memory(training) == TOOLS_BYTES + 8 * GIB
    assert Needs(base=2 * GIB).memory(training, on_gpu=True) == TOOLS_BYTES + 2 * GIB


def test_uuids_of_gpus_are_ids(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa, GPU-bb")
    assert visible_gpus() == ("GPU-aa", "GPU-bb")
    assert resources("cuda").gpus == ("GPU-aa", "GPU-bb")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == ()
