"""What untax's plugins share in a real training: manifest, seeding, plain errors."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from toys import Workspace, sft_rows, write_jsonl
from untax.manifest import changed_outputs, digest_file, digest_files, digest_model
from untax.training.asked import Asked, differences
from untax.training.inputs import TOKENIZER_FILES
from untax.training.record import TrainingRecord
from untax.training.started import is_claimed

Train = Callable[[Path], None]


def weights(folder: str = "out") -> bytes:
    return (Path(folder) / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def refused(axolotl_train: Train, capfd: pytest.CaptureFixture[str]) -> Callable[[Path], str]:
    """Train, expect exit code 2, and return what was said."""

    def train(config: Path) -> str:
        with pytest.raises(SystemExit) as exit_:
            axolotl_train(config)
        assert exit_.value.code == 2
        said = capfd.readouterr().err
        assert "untax: error:" in said
        assert "fix:" in said
        assert "Traceback" not in said
        return said

    return train


def test_the_manifest_says_what_was_done(workspace: Workspace, axolotl_train: Train, base_model: Path) -> None:
    config = workspace.config(delta_l1=0.001, max_steps=3, gradient_accumulation_steps=2)
    axolotl_train(config)
    manifest = workspace.manifest()
    assert manifest["what"] == "adapter"
    keys = yaml.safe_load(config.read_text())
    assert manifest["config"] == {"path": str(config), "digest": digest_file(config), "keys": keys}
    assert manifest["inputs"] == {
        "base": digest_model(base_model),
        "tokenizer": digest_files(base_model, TOKENIZER_FILES),
        "datasets/sft.jsonl": digest_file(Path("sft.jsonl")),
    }
    assert set(manifest["outputs"]) == {"adapter_config.json", "adapter_model.safetensors"}
    assert changed_outputs(Path("out"), manifest) == []
    assert manifest["seed"] == 42
    training = manifest["training"]
    assert (training["kind"], training["rows"], training["steps"]) == ("sft", 24, 3)
    assert training["loss_last"] < training["loss_first"]
    assert (training["rows_held_out"], training["losses_not_finite"]) == (0, 0)
    assert manifest["weights"] == {"tensors": 70, "deltas": 35, "zero_deltas": 0, "not_finite": None}
    assert manifest["penalty"]["steps_penalised"] == 3
    assert manifest["penalty"]["l1"] == 0.001
    assert 0 < manifest["penalty"]["sparsity"] < 1
    assert manifest["penalty"]["l1_norm"] > 0


def test_secrets_of_reporting_services_are_not_kept() -> None:
    """Manifests are published with the model, and what is not in them does not make anything run again."""
    cfg = {"base_model": "org/base", "logging_steps": 5, "comet_api_key": "s3cret", "mlflow_tracking_uri": "u:p@host"}
    record = TrainingRecord.begin(cfg, digests=False)
    assert record.keys == {"base_model": "org/base", "logging_steps": 5}
    assert differences(Asked(record.keys), Asked(cfg)) == []


def test_what_is_edited_during_a_training_does_not_pass_for_what_it_was_started_with(
    workspace: Workspace, axolotl_train: Train, base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    shutil.copytree(base_model, "base")
    config = workspace.config(plugins=["untax.ManifestPlugin"], base_model="base", max_steps=1)
    before = (digest_file(config), digest_model("base"), digest_file(Path("sft.jsonl")))
    step = Trainer.training_step

    def edit(self: Any, *args: Any, **kwargs: Any) -> Any:
        for path in (config, Path("sft.jsonl"), Path("base/config.json")):
            path.write_text(path.read_text() + "\n")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", edit)
    axolotl_train(config)
    manifest = workspace.manifest()
    recorded = (manifest["config"]["digest"], manifest["inputs"]["base"], manifest["inputs"]["datasets/sft.jsonl"])
    assert recorded == before
    now = (digest_file(config), digest_model("base"), digest_file(Path("sft.jsonl")))
    assert not set(now) & set(before)


def test_a_training_resumes_its_own_checkpoints_only(
    workspace: Workspace, axolotl_train: Train, refused: Callable[[Path], str]
) -> None:
    keys: dict[str, Any] = {"plugins": ["untax.ManifestPlugin"], "auto_resume_from_checkpoints": True, "max_steps": 2}
    config = workspace.config(**keys, save_strategy="steps", save_steps=1)
    axolotl_train(config)
    assert is_claimed(Path("out")), "until the process ends"
    first = workspace.manifest()
    shutil.rmtree("out/checkpoint-2")
    # Other checkpoints and another log are the same training.
    config = workspace.config(**{**keys, "logging_steps": 2}, save_steps=2, save_strategy=None, save_total_limit=3)
    axolotl_train(config)
    again = workspace.manifest()
    assert again["outputs"].keys() == first["outputs"].keys()
    assert again["training"]["steps"] == 2
    manifest = Path("out/untax.json").read_bytes()
    write_jsonl(Path("sft.jsonl"), sft_rows(20))
    assert "belong to another recipe" in refused(config)
    assert Path("out/untax.json").read_bytes() == manifest
    assert not is_claimed(Path("out"))


def test_a_share_of_the_steps_is_when_recipes_for_gpus_save(workspace: Workspace, axolotl_train: Train) -> None:
    from untax.recipes.papers import WHEN_SAVED, device_settings, values

    when = {key: value for key, value in values(device_settings("cuda")).items() if key in WHEN_SAVED}
    saved = {**dict.fromkeys(WHEN_SAVED), **when, "save_total_limit": 30}
    axolotl_train(workspace.config(plugins=["untax.ManifestPlugin"], max_steps=24, **saved))
    steps = sorted(int(folder.name.removeprefix("checkpoint-")) for folder in Path("out").glob("checkpoint-*"))
    assert steps == list(range(2, 25, 2)), "a twentieth of 24 steps, rounded up"


@pytest.mark.parametrize("key", ["inference", "merge_lora"])
def test_a_model_loaded_for_something_else_than_a_training(workspace: Workspace, key: str) -> None:
    from axolotl.utils.dict import DictDefault

    from untax import ManifestPlugin

    Path("out").mkdir()
    Path("out/untax.json").write_text("{}")
    cfg = DictDefault({**yaml.safe_load(workspace.config().read_text()), key: True})
    plugin = ManifestPlugin()
    plugin.register(cfg)
    plugin.pre_model_load(cfg)
    assert [path.name for path in Path("out").iterdir()] == ["untax.json"]


def test_the_manifest_plugin_alone(workspace: Workspace, axolotl_train: Train) -> None:
    axolotl_train(workspace.config(plugins=["untax.ManifestPlugin"], seed=0))
    manifest = workspace.manifest()
    assert manifest["training"]["steps"] == 2
    assert manifest["seed"] == 0
    assert "penalty" not in manifest
    assert "disperse" not in manifest


@pytest.mark.parametrize("name", ["untax.DeltaPenaltyPlugin", "untax.penalty.plugin.DeltaPenaltyPlugin"])
def test_no_training_without_a_listed_plugin(
    workspace: Workspace, axolotl_train: Train, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Axolotl 0.19 goes on after an ImportError of a plugin."""
    monkeypatch.setitem(sys.modules, "untax.penalty.plugin", None)
    with pytest.raises((SystemExit, RuntimeError, ImportError)):
        axolotl_train(workspace.config(plugins=["untax.DispersePlugin", name], delta_l1=0.001))
    assert not Path("out/adapter_model.safetensors").exists()


def test_both_plugins_write_one_manifest(workspace: Workspace, axolotl_train: Train) -> None:
    plugins = ["untax.DeltaPenaltyPlugin", "untax.DispersePlugin", "untax.ManifestPlugin"]
    axolotl_train(workspace.config(plugins=plugins, delta_l1=0.001, disperse_clusters=2, disperse_cluster=1))
    manifest = workspace.manifest()
    assert manifest["penalty"]["steps_penalised"] == manifest["training"]["steps"] == 2
    assert manifest["disperse"]["cluster"] == 1


def test_equal_seeds_give_equal_bytes(workspace: Workspace, axolotl_train: Train) -> None:
    import torch

    plugins = ["untax.ManifestPlugin"]
    made: dict[Any, bytes] = {}
    for seed in (None, 42, 0, 1):
        torch.rand(7)  # what another plugin may draw before
        axolotl_train(workspace.config(plugins=plugins, seed=seed))
        made[seed] = weights()
    assert made[None] == made[42], "without a seed: the trainer's own default"
    assert len({made[42], made[0], made[1]}) == 3


def test_a_training_that_dies_leaves_no_manifest(
    workspace: Workspace, axolotl_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    config = workspace.config(plugins=["untax.ManifestPlugin"])
    axolotl_train(config)
    assert Path("out/untax.json").exists()

    def die(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert not Path("out/untax.json").exists(), "gone before the first step"
        raise RuntimeError("power cut")

    monkeypatch.setattr(Trainer, "training_step", die)
    with pytest.raises(RuntimeError, match="power cut"):
        axolotl_train(config)
    assert not Path("out/untax.json").exists()


def test_a_resumed_training_counts_its_own_steps(workspace: Workspace, axolotl_train: Train) -> None:
    axolotl_train(workspace.config(delta_l1=0.001, max_steps=2, save_strategy="steps", save_steps=2))
    resumed = workspace.config(delta_l1=0.001, max_steps=5, resume_from_checkpoint="out/checkpoint-2")
    axolotl_train(resumed)
    manifest = workspace.manifest()
    assert manifest["training"]["steps"] == 5
    assert manifest["penalty"]["steps_before"] == 2
    assert manifest["penalty"]["steps_penalised"] == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"delta_l1": -1.0}, "delta_l1: -1.0"),
        ({"delta_l1": float("nan")}, "delta_l1: nan"),
        ({"delta_l1": 0.1, "peft_use_dora": True}, "peft_use_dora"),
        ({"delta_l1": 0.1, "deepspeed": "zero3.json"}, "deepspeed"),
        ({"delta_ewc": 0.1, "delta_ewc_fisher": "gone.safetensors"}, "gone.safetensors"),
        ({"disperse_clusters": 4, "disperse_cluster": 0}, "- untax.DispersePlugin"),
        ({"plugins": ["untax.DispersePlugin"], "disperse_clusters": 1, "disperse_cluster": 0}, "at least 2"),
        ({"plugins": ["untax.DispersePlugin"], "disperse_clusters": 25, "disperse_cluster": 0}, "24 different rows"),
        ({"plugins": ["untax.DispersePlugin"], "disperse_clusters": 4, "disperse_cluster": 4}, "0 to 3"),
        ({"plugins": ["untax.ManifestPlugin"], "datasets": [{"path": "gone.jsonl", "type": "alpaca"}]}, "gone.jsonl"),
        ({"plugins": ["untax.ManifestPlugin"], "datasets": [{"path": "empty.jsonl", "type": "alpaca"}]}, "is empty"),
        ({"plugins": ["untax.ManifestPlugin"], "datasets": None}, "key datasets"),
        ({"plugins": ["untax.DispersePlugin", "untax.disperse.plugin.DispersePlugin"]}, "two names"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    workspace: Workspace, refused: Callable[[Path], str], changes: dict[str, Any], said: str
) -> None:
    Path("empty.jsonl").touch()
    config = workspace.config(**changes)
    before = workspace.files()
    message = refused(config)
    assert said in message
    written = workspace.files() - before - {"out/debug.log"}
    assert not written, "Axolotl's own log aside, nothing is left"


def test_modules_that_are_trained_whole_are_penalised_too(workspace: Workspace, axolotl_train: Train) -> None:
    axolotl_train(workspace.config(delta_l1=0.001, lora_modules_to_save=["embed_tokens"]))
    assert workspace.manifest()["penalty"]["modules"] == 36


def test_an_embedding_adapter_is_penalised(workspace: Workspace, axolotl_train: Train) -> None:
    targets = ["embed_tokens", "q_proj"]
    axolotl_train(workspace.config(delta_l1=0.001, lora_target_linear=None, lora_target_modules=targets))
    assert workspace.manifest()["penalty"]["modules"] == 6


def test_debug_keeps_the_exception(workspace: Workspace, axolotl_train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    from untax.errors import UntaxError

    monkeypatch.setenv("UNTAX_DEBUG", "1")
    with pytest.raises(UntaxError):
        axolotl_train(workspace.config(delta_l1=-1.0))


def test_other_ranks_write_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from axolotl.utils.dict import DictDefault

    from untax import ManifestPlugin

    Path("out").mkdir()
    save_file({"x": np.ones(1, np.float32)}, "out/adapter_model.safetensors")
    Path("out/untax.json").write_text("{}")
    cfg = DictDefault(yaml.safe_load(workspace.config().read_text()))
    plugin = ManifestPlugin()
    plugin.register(cfg)
    monkeypatch.setitem(os.environ, "RANK", "1")
    plugin.pre_model_load(cfg)
    plugin.post_train_unload(cfg)
    assert Path("out/untax.json").read_text() == "{}"
    monkeypatch.setitem(os.environ, "RANK", "0")
    plugin.pre_model_load(cfg)
    assert not Path("out/untax.json").exists()
    plugin.post_train_unload(cfg)
    assert set(json.loads(Path("out/untax.json").read_text())["outputs"]) == {"adapter_model.safetensors"}


def test_a_training_that_leaves_no_weights_is_an_error(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    from axolotl.utils.dict import DictDefault

    from untax import ManifestPlugin

    write_jsonl(Path("sft.jsonl"), sft_rows(2))
    cfg = DictDefault(yaml.safe_load(workspace.config().read_text()))
    plugin = ManifestPlugin()
    plugin.register(cfg)
    with pytest.raises(SystemExit) as exit_:
        plugin.post_train_unload(cfg)
    assert exit_.value.code == 2
    assert "adapter_model" in capfd.readouterr().err
