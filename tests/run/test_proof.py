"""What a manifest must prove of the YAML that was run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from untax.data.corpus import entries_digest
from untax.run.identity import assignment_differs
from untax.run.proof import missing_proof

CONFIG = {
    **{"disperse_clusters": 4, "disperse_cluster": 1, "delta_l1": 0.001},
    "datasets": [{"path": "a.jsonl", "type": "alpaca"}],
}
MANIFEST = {
    "what": "adapter",
    "training": {"rows": 8, "steps": 10, "loss_first": 3.0, "loss_last": 2.0, "train_loss": 2.5},
    "disperse": {"clusters": 4, "cluster": 1, "rows": 10, "rows_read": 10},
    "penalty": {
        "l1": 0.001,
        "target": "product",
        "schedule": "constant",
        "only": None,
        "sparsity_target": None,
        "modules": 35,
        "steps_penalised": 10,
    },
}


def test_a_manifest_that_proves_everything():
    assert missing_proof(CONFIG, MANIFEST) is None


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("disperse",), None, "DispersePlugin"),
        (("disperse", "cluster"), 0, "cluster 0 of 4 was trained"),
        (("penalty",), None, "DeltaPenaltyPlugin"),
        (("penalty", "l1"), 0.01, "delta_l1 0.01, and the YAML asks for 0.001"),
        (("penalty", "target"), "factors", "delta_target factors"),
        (("penalty", "only"), ["q_proj"], "delta_modules ['q_proj']"),
        (("penalty", "modules"), 0, "covered no layer"),
        (("penalty", "steps_penalised"), 9, "9 of 10"),
        (("penalty", "steps_penalised"), 0, "DeltaPenaltyPlugin"),
        (("training",), None, "not prove a single training step"),
        (("training", "loss_last"), float("nan"), "NaN"),
        (("training", "train_loss"), float("inf"), "infinite"),
        (("training", "losses_not_finite"), 1, "NaN"),
        (
            ("weights",),
            {"tensors": 2, "deltas": 1, "zero_deltas": 0, "not_finite": "a.lora_A"},
            "infinity, in a.lora_A",
        ),
        (("weights",), {"tensors": 4, "deltas": 2, "zero_deltas": 2, "not_finite": None}, "all zeros"),
        (("disperse", "rows_read"), 9, "read 9 rows, and the assignment has 10"),
        (("disperse", "rows"), 9, "read 10 rows, and the assignment has 9"),
        (("training", "rows"), 11, "the trainer had 11 rows, and the assignment has 10"),
        (("training", "rows_held_out"), 3, "the trainer had 11 rows"),
    ],
)
def test_what_is_not_proven_is_said(path, value, said):
    manifest = copy.deepcopy(MANIFEST)
    *parents, last = path
    section = manifest
    for parent in parents:
        section = section[parent]
    if value is None:
        del section[last]
    else:
        section[last] = value
    config = CONFIG if path != ("training",) else {}
    assert said in (missing_proof(config, manifest) or "")


def test_steps_before_a_checkpoint_count():
    """A training may have been killed after its last step and before its manifest."""
    manifest = copy.deepcopy(MANIFEST)
    manifest["penalty"].update(steps_penalised=0, steps_before=10)
    assert missing_proof(CONFIG, manifest) is None


@pytest.mark.parametrize(("zeros", "said"), [(0.9, None), (0.89, "89.0% zeros"), (None, "0.0% zeros")])
def test_zeros_are_proven(zeros, said):
    manifest = copy.deepcopy(MANIFEST)
    manifest["penalty"]["sparsity_target"] = 0.9
    if zeros is not None:
        manifest["penalty"]["pruned"] = {"layers": 35, "zeros": zeros}
    found = missing_proof({**CONFIG, "adapter": "lora", "delta_sparsity": 0.9}, manifest)
    assert found is None if said is None else said in found


def test_a_plain_training_needs_no_plugins():
    assert missing_proof({}, {"what": "adapter", "training": MANIFEST["training"]}) is None


def test_the_same_rows_under_another_number_are_proven():
    more = {**CONFIG, "disperse_clusters": 5}
    assert "cluster 1 of 4 was trained, and the YAML asks for 1 of 5" in (missing_proof(more, MANIFEST) or "")
    assert missing_proof(more, MANIFEST, same_rows=True) is None


def test_long_texts_may_become_several_rows():
    manifest = copy.deepcopy(MANIFEST)
    manifest["training"]["rows"] = 30
    texts = {**CONFIG, "datasets": [{"path": "a.jsonl", "type": "completion"}]}
    assert missing_proof(texts, manifest) is None
    assert "the trainer had 30 rows" in (missing_proof(CONFIG, manifest) or "")


@pytest.mark.parametrize(
    ("down", "up", "said"),
    [
        ([1.0, 2.0], [0.5, -0.5], None),
        ([1.0, 2.0], [0.0, -0.0], "the adapter is all zeros: B @ A is 0 in all 1 layers"),
        ([0.0, 0.0], [1.0, 1.0], "all zeros"),
        ([1.0, float("nan")], [1.0, 1.0], "NaN or infinity, in m.lora_A.weight"),
        ([1.0, 1.0], [float("inf"), 1.0], "NaN or infinity, in m.lora_B.weight"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_of_an_older_manifest_are_measured(tmp_path: Path, down, up, said, dtype):
    import torch
    from safetensors.torch import save_file

    kind = getattr(torch, dtype)
    tensors = {"m.lora_A.weight": torch.tensor([down], dtype=kind), "m.lora_B.weight": torch.tensor([up], dtype=kind).T}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "adapter_model.safetensors")
    manifest = {"what": "adapter", "training": MANIFEST["training"], "outputs": {"adapter_model.safetensors": ""}}
    found = missing_proof({}, manifest, output=tmp_path)
    assert found is None if said is None else said in found


def test_an_assignment_must_have_the_settings_of_the_yaml(tmp_path: Path):
    config = {"disperse_clusters": 4, "disperse_cluster": 0, "datasets": [{"path": "a.jsonl", "type": "alpaca"}]}
    entries = entries_digest(config["datasets"])
    section = {"strategy": "random", "seed": 42, "clusters": 4, "first_turn": False, "entries": entries}

    def differs(config: dict[str, Any], **changes: Any) -> str | None:
        return assignment_differs(config, {"what": "assignment", "disperse": {**section, **changes}}, tmp_path)

    assert differs(config) is None
    assert differs(config, seed=7) == "it was made with seed 7 instead of 42"
    more = {**config, "datasets": [*config["datasets"], {"path": "b.jsonl"}]}
    assert "other rows" in (differs(more) or "")
