"""A run folder with an arm of every kind, run node by node in this process: starting Axolotl takes longer."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from toys import fresh_axolotl
from untax.demo.demo import BUNDLE, demo_spec
from untax.recipes.graph import Node, Plan
from untax.recipes.spec import check_spec
from untax.recipes.write import write_run_folder

ROWS = {"sft": 24, "preference": 6}
METHODS = ["dpo", "orpo", "kto", "simpo"]
ARMS: dict[str, Any] = {
    "vanilla": {"scales": [1.0]},
    "dtm": {"clusters": 2},
    "l2": {"delta_l2": 10.0},
    "ewc": {"delta_ewc": 1000.0, "samples": 8},
    "replay": {"ratio": 0.5},
    "soup": {"runs": [{}, {"learning_rate": 0.0005}]},
    "individual": {"of": ["sft", "sft-sparse", *METHODS], "delta_l1": 0.01},
    "sequential": {"sft": ["dense", "sparse"], "preference": ["dpo"], "delta_l1": 0.01},
    "parallel": {"preference": ["dpo"]},
    "paft": {"delta_l1": 0.01, "preference": METHODS},
    "dtm-paft": {"clusters": 2, "delta_l1": 0.01, "preference": ["dpo"]},
}
SMALL: dict[str, Any] = {"micro_batch_size": 4, "logging_steps": 1}
PAIRS: dict[str, Any] = {"micro_batch_size": 6, "num_epochs": 2, "logging_steps": 1}
"""A batch holds every pair, so that the first one is the same for any seed."""
FEW = {
    **{name: ARMS[name] for name in ("ewc", "replay", "sequential")},
    "paft": {**ARMS["paft"], "preference": ["kto"]},
}
"""A part of them, for a quick run: dense and penalised SFT, both kinds of text, both orders of preference training."""


@dataclass
class Trained:
    """What a trainer was given and logged.

    Attributes:
        rows: its rows.
        logs: what it logged, a step each.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    logs: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class ArmFolder:
    """The folder, what it consists of, and what each training did, by its node."""

    path: Path
    plan: Plan
    trained: dict[str, Trained]

    def nodes(self, *kinds: str) -> list[Node]:
        """Those of these kinds."""
        return [node for node in self.plan.nodes if node.kind in kinds]

    def manifest(self, node: str) -> dict[str, Any]:
        """Of a node's output, without its prefix."""
        found = (self.path / "outputs" / node).glob("*untax.json")
        return json.loads(next(found).read_text())

    def keys(self, node: str) -> dict[str, Any]:
        """A training's Axolotl keys."""
        return yaml.safe_load((self.path / f"recipes/{node}.yaml").read_text())


def spec_content(arms: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = demo_spec().model_dump(exclude_none=True)
    training = content["training"]
    return {
        **content,
        "arms": arms,
        "suite": None,
        "replay": [{"path": "data/base_samples.jsonl", "field": "text"}],
        "training": {"sft": {**training["sft"], **SMALL}, "preference": {**training["preference"], **PAIRS}},
    }


def make_arm_folder(path: Path, arms: dict[str, Any]) -> ArmFolder:
    """The folder with its YAMLs, the base and a few rows of the demo's data; nothing has run."""
    path.mkdir()
    shutil.copytree(BUNDLE / "base", path / "base")
    (path / "data").mkdir()
    shutil.copyfile(BUNDLE / "data/base_samples.jsonl", path / "data/base_samples.jsonl")
    for name, count in ROWS.items():
        lines = (BUNDLE / f"data/{name}.jsonl").read_text().splitlines(keepends=True)
        (path / f"data/{name}.jsonl").write_text("".join(lines[:count]))
    plan = write_run_folder(check_spec(spec_content(arms), where="every kind of arm"), path).plan
    return ArmFolder(path, plan, {})


def run_all(folder: ArmFolder) -> None:
    """Every node's command, in the order of the plan."""
    with pytest.MonkeyPatch.context() as patch, recorded(folder, patch):
        patch.chdir(folder.path)
        _patch_datasets(patch)
        for node in folder.plan.nodes:
            patch.setattr(sys, "argv", list(node.command))
            _train(node) if node.kind == "train" else untax_command(node.command[1:])


def _train(node: Node) -> None:
    from axolotl.cli.train import do_cli

    assert node.command[:2] == ("axolotl", "train")
    assert node.command[2] == node.config
    with fresh_axolotl():
        do_cli(config=node.config)


def untax_command(arguments: Sequence[str]) -> str:
    """``untax`` with these arguments, in this process; what it printed."""
    from click.testing import CliRunner

    from untax.cli.main import cli

    done = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, f"{arguments}: {done.output}"
    return done.output


@contextlib.contextmanager
def recorded(folder: ArmFolder, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep what every trainer is given and logs."""
    from transformers import Trainer

    train = Trainer.train

    def remember(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = folder.trained[Path(self.args.output_dir).name] = Trained(list(self.train_dataset))
        try:
            return train(self, *args, **kwargs)
        finally:
            found.logs = self.state.log_history

    patch.setattr(Trainer, "train", remember)
    yield


def _patch_datasets(patch: pytest.MonkeyPatch) -> None:
    """`datasets` starts a process even for one worker, which takes longer than these few rows."""
    from datasets import Dataset

    for name in ("map", "filter", "save_to_disk"):
        method = getattr(Dataset, name)

        def alone(self: Any, *args: Any, _method: Any = method, num_proc: Any = None, **kwargs: Any) -> Any:
            return _method(self, *args, **kwargs)

        patch.setattr(Dataset, name, alone)
