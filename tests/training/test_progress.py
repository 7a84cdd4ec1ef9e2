"""How many tokens a real training says it was trained on, and what it says of itself while it runs."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from toys import BASE, Workspace, preference_rows, write_jsonl
from untax.run.progress import read
from untax.training.progress import VARIABLE, TrainingProgress, follow, real_tokens, tokens_trained

Train = Callable[[Path], None]
PLUGINS = ["untax.ManifestPlugin"]
WHOLE = {"plugins": PLUGINS, "max_steps": None, "num_epochs": 1}
STORIES = ["Once upon a time there was a toy. " * (index % 7 + 1) for index in range(24)]

# What each of two ranks runs: Axolotl, told that its accelerator is the CPU.
RANK = """
import sys
from axolotl.cli.train import do_cli
from penalty.ranks import share_cpus
if __name__ == "__main__":  # Datasets' workers import this file once more.
    share_cpus()
    do_cli(config=sys.argv[1])
"""


def ids(text: str) -> list[int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BASE)(text)["input_ids"]


def tokens_of(texts: list[str]) -> int:
    """Each with a token for its beginning and one for its end."""
    return sum(len(ids(text)) + 1 for text in texts)


@pytest.fixture
def stories(workspace: Workspace) -> dict[str, Any]:
    """Rows of one field, of very different lengths, with which nothing is put around a text."""
    write_jsonl(Path("stories.jsonl"), [{"text": story} for story in STORIES])
    return {**WHOLE, "datasets": [{"path": "stories.jsonl", "type": "completion"}]}


@pytest.fixture
def name_file(workspace: Workspace) -> Iterator[Callable[[str], Path]]:
    """Name the file that trainings write. A training leaves ``os.environ`` another object: none of a monkeypatch's."""

    def name(path: str) -> Path:
        os.environ[VARIABLE] = path
        return workspace.folder / path

    yield name
    os.environ.pop(VARIABLE, None)


@pytest.fixture
def progress_file(name_file: Callable[[str], Path]) -> Path:
    return name_file("said/progress.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_accumulation_steps": 2},
        {"sample_packing": True, "pad_to_sequence_len": True},
        {
            "pad_to_sequence_len": True,
            "plugins": ["untax.DeltaPenaltyPlugin", "untax.ManifestPlugin"],
            "delta_l1": 0.001,
        },
    ],
    ids=["padded", "packed", "with two plugins"],
)
def test_an_epoch_has_the_tokens_of_its_rows(
    workspace: Workspace, axolotl_train: Train, stories: dict[str, Any], changes: dict[str, Any]
) -> None:
    axolotl_train(workspace.config(**{**stories, **changes}))
    assert workspace.manifest()["training"]["tokens"] == tokens_of(STORIES)


def test_a_stream_has_the_tokens_of_its_steps(
    workspace: Workspace, axolotl_train: Train, stories: dict[str, Any]
) -> None:
    write_jsonl(Path("stories.jsonl"), [{"text": STORIES[3]}] * 30)
    axolotl_train(workspace.config(**{**stories, "num_epochs": None, "max_steps": 5}, streaming=True))
    assert workspace.manifest()["training"]["tokens"] == 5 * 2 * tokens_of(STORIES[3:4])


def test_pairs_count_with_their_prompts(workspace: Workspace, axolotl_train: Train) -> None:
    """DPO: the model reads prompt and answer twice for every pair."""
    axolotl_train(workspace.config(dpo=True, **WHOLE))
    texts = [
        f"### Instruction:\n{row['prompt']}\n\n### Response:\n{row[answer]}"
        for row in preference_rows(16)
        for answer in ("chosen", "rejected")
    ]
    assert workspace.manifest()["training"]["tokens"] == tokens_of(texts)


def test_orpo(workspace: Workspace, axolotl_train: Train) -> None:
    """As many as its own tokenised rows have."""
    rows = [
        {
            "prompt": row["prompt"],
            **{
                kind: [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[kind]}]
                for kind in ("chosen", "rejected")
            },
        }
        for row in preference_rows(16)
    ]
    write_jsonl(Path("orpo.jsonl"), rows)
    datasets = [{"path": "orpo.jsonl", "type": "chat_template.argilla"}]
    keys = {"rl": "orpo", "orpo_alpha": 0.1, "chat_template": "chatml", "remove_unused_columns": False}
    columns = rows_of_the_trainer(workspace, axolotl_train, workspace.config(**WHOLE, **keys, datasets=datasets))
    expected = sum(len(row["chosen_input_ids"]) + len(row["rejected_input_ids"]) for row in columns)
    assert workspace.manifest()["training"]["tokens"] == expected
    assert expected > 2 * sum(len(row["prompt_input_ids"]) for row in columns), "each answer with its prompt"


def test_kto(workspace: Workspace, axolotl_train: Train) -> None:
    """The answers that it is trained on, and not those that measure how far it has gone."""
    rows = [
        {"prompt": row["prompt"], "completion": row[kind], "label": kind == "chosen"}
        for row in preference_rows(16)
        for kind in ("chosen", "rejected")
    ]
    write_jsonl(Path("kto.jsonl"), rows)
    kind = {
        **{f"field_{name}": name for name in ("prompt", "completion", "label")},
        **{"prompt_format": "{prompt}", "completion_format": " {completion}"},
    }
    keys = {"rl": "kto", "rl_beta": 0.1, "remove_unused_columns": False}
    config = workspace.config(**WHOLE, **keys, datasets=[{"path": "kto.jsonl", "type": kind}])
    columns = rows_of_the_trainer(workspace, axolotl_train, config)
    expected = sum(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in columns)
    assert workspace.manifest()["training"]["tokens"] == expected > 0


def rows_of_the_trainer(workspace: Workspace, axolotl_train: Train, config: Path) -> list[dict[str, Any]]:
    """Train, and return the tokenised rows."""
    from transformers import Trainer

    rows: list[dict[str, Any]] = []
    inner = Trainer.train

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        rows.extend(dict(row) for row in self.train_dataset)
        return inner(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", train)
        axolotl_train(config)
    assert rows
    return rows


def test_a_resumed_training_goes_on_counting(
    workspace: Workspace, axolotl_train: Train, stories: dict[str, Any], progress_file: Path
) -> None:
    axolotl_train(workspace.config(**stories, save_strategy="steps", save_steps=5))
    state = json.loads(Path("out/checkpoint-5/trainer_state.json").read_text())
    assert 0 < state["num_input_tokens_seen"] < tokens_of(STORIES)
    axolotl_train(workspace.config(**stories, resume_from_checkpoint="out/checkpoint-5"))
    assert workspace.manifest()["training"]["tokens"] == tokens_of(STORIES)
    said = json.loads(progress_file.read_text())
    assert said["tokens"] == tokens_of(STORIES)
    assert (said["first_step"], said["step"], said["steps"]) == (5, 12, 12)
    fresh = tokens_of(STORIES) - state["num_input_tokens_seen"]
    assert said["tokens_per_second"] == pytest.approx(fresh / said["seconds"], rel=0.1), "those of this process"


@pytest.mark.parametrize("who", ["nobody", "transformers"])
def test_what_nobody_counted_is_not_known(
    workspace: Workspace, axolotl_train: Train, stories: dict[str, Any], who: str
) -> None:
    """A checkpoint of a training without the plugin, and one in which transformers has counted the padding too."""
    counted = {"include_tokens_per_second": True} if who == "transformers" else {}
    axolotl_train(workspace.config(**stories, **counted, save_strategy="steps", save_steps=5))
    assert workspace.manifest()["training"]["tokens"] == tokens_of(STORIES)
    state = Path("out/checkpoint-5/trainer_state.json")
    if who == "nobody":
        state.write_text(json.dumps({**json.loads(state.read_text()), "num_input_tokens_seen": 0}))
    else:
        assert json.loads(state.read_text())["num_input_tokens_seen"] > sum(
            len(ids(story)) + 1 for story in STORIES[:10]
        )
    axolotl_train(workspace.config(**stories, **counted, resume_from_checkpoint="out/checkpoint-5"))
    assert workspace.manifest()["training"]["tokens"] is None


def test_a_training_says_how_far_it_is(
    workspace: Workspace, axolotl_train: Train, progress_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the file says after every step, read as the runner reads it."""
    from transformers import Trainer

    monkeypatch.setattr("untax.training.progress.WRITE_SECONDS", 0.0)
    seen: list[dict[str, Any]] = []
    step = Trainer.training_step

    def look(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert read(progress_file) is not None
        seen.append(json.loads(progress_file.read_text()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", look)
    before = time.time()
    axolotl_train(workspace.config(plugins=PLUGINS, max_steps=6, logging_steps=2))
    seen.append(json.loads(progress_file.read_text()))
    assert [said["step"] for said in seen] == [0, 1, 2, 3, 4, 5, 6]
    assert {said["steps"] for said in seen} == {6}
    log = json.loads(Path("out/untax.json").read_text())["training"]
    assert [said["loss"] for said in seen[:2]] == [None, None]
    assert seen[2]["loss"] == seen[3]["loss"] == log["loss_first"]
    assert seen[-1]["loss"] == log["loss_last"]
    assert seen[0]["tokens"] == 0
    assert all(0 < after["tokens"] - said["tokens"] < 512 for said, after in itertools.pairwise(seen))
    assert seen[-1]["tokens"] == log["tokens"]
    assert seen[-1]["tokens_per_second"] == pytest.approx(log["tokens"] / seen[-1]["seconds"], rel=0.1)
    assert before < seen[0]["started"] == seen[-1]["started"] <= seen[-1]["time"] < time.time()
    assert [path.name for path in progress_file.parent.iterdir()] == [progress_file.name]


@pytest.mark.parametrize("place", ["sft.jsonl/progress.json", "folder"])
def test_no_training_fails_for_its_progress(
    workspace: Workspace, axolotl_train: Train, name_file: Callable[[str], Path], place: str
) -> None:
    """Below a file, and where a folder is."""
    Path("folder/inside").mkdir(parents=True)
    name_file(place)
    axolotl_train(workspace.config(plugins=PLUGINS))
    assert workspace.manifest()["training"]["steps"] == 2
    assert workspace.manifest()["training"]["tokens"] > 0


class StandIn:
    """As much of a trainer as is asked for its progress."""

    def __init__(self, world_size: int = 1) -> None:
        import torch
        from transformers import TrainerState

        self.state = TrainerState(max_steps=3)
        self.args: Any = type("", (), {"device": torch.device("cpu"), "world_size": world_size})()
        self.accelerator: Any = type("", (), {"parallelism_config": None})()
        self.callbacks: list[Any] = []

    def add_callback(self, callback: Any) -> None:
        self.callbacks.append(callback)

    def training_step(self, model: Any, inputs: Any) -> None:
        pass

    def save_model(self, output_dir: str) -> None:
        pass

    def is_world_process_zero(self) -> bool:
        return True


def test_a_trainer_is_followed_once() -> None:
    import torch

    trainer: Any = StandIn()
    follow(trainer)
    follow(trainer)
    assert len(trainer.callbacks) == 1
    trainer.training_step(None, {"attention_mask": torch.tensor([[1, 1, 0], [1, 2, 2]])})
    assert tokens_trained(trainer) == 0, "not fetched from the device before it has to be"
    trainer.callbacks[0].on_train_end(None, None, None)
    assert tokens_trained(trainer) == 5
    assert tokens_trained(object()) is None


def test_losses_that_are_no_numbers_are_counted_where_the_trainer_hides_them(
    workspace: Workspace, axolotl_train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers logs the average of the others in place of a NaN; the weights may survive it."""
    from transformers import Trainer

    step, calls = Trainer.training_step, []

    def sometimes_nan(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        loss = step(self, *args, **kwargs)
        return loss * float("nan") if len(calls) in (2, 3) else loss

    monkeypatch.setattr(Trainer, "training_step", sometimes_nan)
    axolotl_train(workspace.config(plugins=PLUGINS, max_steps=6, logging_steps=1))
    assert workspace.manifest()["training"]["losses_not_finite"] == 2


def test_what_does_not_say_its_tokens_is_not_counted() -> None:
    import torch

    mask = torch.tensor([[1, 1, 0]])
    assert real_tokens([{"prompt": "text"}]) is None
    assert real_tokens({"input_ids": mask}) is None
    assert real_tokens({"chosen_attention_mask": mask}) is None
    assert real_tokens({"attention_mask": mask[None, None]}) is None, "a mask of pairs of positions"
    pairs = real_tokens({"chosen_attention_mask": mask, "rejected_attention_mask": mask, "prompt_attention_mask": mask})
    assert pairs is not None
    assert pairs.item() == 4
    trainer: Any = StandIn()
    follow(trainer)
    trainer.training_step(None, {"attention_mask": mask})
    trainer.training_step(None, [{"prompt": "text"}])
    trainer.callbacks[0].on_train_end(None, None, None)
    assert tokens_trained(trainer) is None


def test_ranks_that_share_a_batch_are_not_added_up() -> None:
    trainer: Any = StandIn()
    trainer.accelerator.parallelism_config = type("", (), {"non_data_parallel_size": 2})()
    follow(trainer)
    trainer.callbacks[0].on_train_begin(None, None, None)
    assert tokens_trained(trainer) is None


def test_a_loss_that_is_no_number_is_none(tmp_path: Path) -> None:
    """JSON knows no NaN, and whoever reads it should not trip."""
    progress = TrainingProgress(StandIn(), tmp_path / "p.json")
    for loss, said in ((2.5, 2.5), (float("nan"), None), (1.5, 1.5), (float("inf"), None)):
        progress.logged({"loss": loss})
        progress.write()
        assert json.loads((tmp_path / "p.json").read_text())["loss"] == said


@pytest.mark.slow
def test_two_ranks_count_each_token_once(workspace: Workspace, stories: dict[str, Any], progress_file: Path) -> None:
    """Rows of different lengths, of which each rank has other ones, and a checkpoint in the middle."""
    from penalty.ranks import start_ranks

    config = workspace.config(**stories, save_strategy="steps", save_steps=2)
    Path("rank.py").write_text(RANK)
    start_ranks(Path("rank.py"), str(config), folder=workspace.folder)
    training = workspace.manifest()["training"]
    assert training["steps"] == 6
    assert training["tokens"] == tokens_of(STORIES)
    seen = [json.loads(Path(f"out/checkpoint-{step}/trainer_state.json").read_text()) for step in (2, 4, 6)]
    counts = [state["num_input_tokens_seen"] for state in seen]
    assert 0 < counts[0] < counts[1] < counts[2] == tokens_of(STORIES)
    assert json.loads(progress_file.read_text())["tokens"] == tokens_of(STORIES)
