"""What a machine has and what nodes need."""

from __future__ import annotations

from untax.run.process import environment
from untax.run.resources import resources


def test_a_run_on_the_cpu_leaves_gpus_alone():
    assert environment(1, cpu_only=True)["CUDA_VISIBLE_DEVICES"] == ""
    assert environment(1, ("3",))["CUDA_VISIBLE_DEVICES"] == "3"
    assert resources("cpu").cpu_only


def test_resources_of_a_cpu_are_fixed():
    assert resources("cpu", jobs=3).threads == 1
    assert resources("cpu", jobs=3).jobs == 3
    assert resources("cpu").jobs >= 1
