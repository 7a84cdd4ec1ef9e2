"""One cluster and nothing else, in each kind of training: packed, split, evaluated, preference data, several ranks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from corpora import corpus_of
from toys import Workspace, preference_rows, sft_rows, write_jsonl
from untax.data.digest import row_digest
from untax.disperse.assignment import obtain
from untax.disperse.settings import DisperseSettings

ASSIGNMENT = "outputs/disperse/assignment.parquet"
KEYS: dict[str, Any] = {
    "plugins": ["untax.DispersePlugin"],
    "disperse_clusters": 3,
    "disperse_assignment": ASSIGNMENT,
    "max_steps": 1,
}
Train = Callable[[Path], None]


def table() -> dict[str, list[Any]]:
    return pq.read_table(ASSIGNMENT).to_pydict()


def assigned(rows: list[dict[str, Any]], cluster: int) -> list[dict[str, Any]]:
    return [row for row, own in zip(rows, table()["cluster"], strict=True) if own == cluster]


def found(rows: list[dict[str, Any]], texts: Iterable[str], key: str = "output") -> list[dict[str, Any]]:
    """Those rows that are in the texts, as often as they are."""
    together = "\n".join(texts)
    return [row for row in rows for _ in range(together.count(str(row[key])))]


@pytest.fixture
def held_out(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The decoded evaluation rows of every trainer that is made."""
    from transformers import AutoTokenizer, Trainer

    from toys import BASE

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    evaluated: list[list[str]] = []
    train = Trainer.train

    def remember(self: Any, *args: Any, **kwargs: Any) -> Any:
        evaluated.append([tokenizer.decode(row["input_ids"]) for row in self.eval_dataset])
        return train(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", remember)
    return evaluated


def test_packed_rows(workspace: Workspace, axolotl_train: Train, trained: list[str]) -> None:
    rows = sft_rows(90)
    write_jsonl(Path("sft.jsonl"), rows)
    packing = {"sample_packing": True, "pad_to_sequence_len": True, "attn_implementation": "sdpa", "sequence_len": 512}
    one_epoch = {"max_steps": None, "num_epochs": 1, "micro_batch_size": 1}
    axolotl_train(workspace.config(**{**KEYS, **packing, **one_epoch}, disperse_cluster=1))
    expected = assigned(rows, 1)
    assert len(trained) < len(expected) / 2
    assert found(rows, trained) == found(expected, trained)
    # Packing leaves out the rows that do not fill a last batch.
    assert len(expected) * 0.7 < len(found(rows, trained)) <= len(expected)
    assert workspace.manifest()["disperse"]["rows"] == len(expected)


def test_a_validation_split_is_one_of_the_cluster(
    workspace: Workspace, axolotl_train: Train, seen: list[list[str]], held_out: list[list[str]]
) -> None:
    axolotl_train(workspace.config(**KEYS, disperse_cluster=1, val_set_size=0.3))
    expected = assigned(sft_rows(24), 1)
    assert min(len(seen[0]), len(held_out[0])) > 1
    assert found(sft_rows(24), seen[0] + held_out[0]) == expected
    assert len(seen[0]) + len(held_out[0]) == len(expected)


def test_held_out_data_are_not_dispersed(
    workspace: Workspace, axolotl_train: Train, seen: list[list[str]], held_out: list[list[str]]
) -> None:
    held = sft_rows(11, start=300)
    write_jsonl(Path("held.jsonl"), held)
    tests = [{"path": "held.jsonl", "type": "alpaca", "split": "train"}]
    axolotl_train(workspace.config(**KEYS, disperse_cluster=2, test_datasets=tests))
    assert found(held, held_out[0]) == held
    assert found(sft_rows(24), seen[0]) == assigned(sft_rows(24), 2)
    assert (len(held_out[0]), found(held, seen[0])) == (11, [])


def test_orpo(workspace: Workspace, axolotl_train: Train, seen: list[list[str]]) -> None:
    rows = [
        {
            "prompt": row["prompt"],
            "chosen": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["rejected"]}],
        }
        for row in preference_rows(16)
    ]
    write_jsonl(Path("orpo.jsonl"), rows)
    orpo = {
        "rl": "orpo",
        "orpo_alpha": 0.1,
        "chat_template": "chatml",
        "remove_unused_columns": False,
        "datasets": [{"path": "orpo.jsonl", "type": "chat_template.argilla"}],
    }
    for cluster in (1, 2):
        axolotl_train(workspace.config(**KEYS, **orpo, disperse_cluster=cluster))
        expected = assigned(rows, cluster)
        assert len(seen[-1]) == len(expected) > 1
        assert found(rows, seen[-1], "prompt") == expected
    assert workspace.manifest()["training"]["kind"] == "orpo"


def test_kto(workspace: Workspace, axolotl_train: Train, seen: list[list[str]]) -> None:
    rows = [
        {"prompt": row["prompt"], "completion": row[kind], "label": kind == "chosen"}
        for row in preference_rows(16)
        for kind in ("chosen", "rejected")
    ]
    write_jsonl(Path("kto.jsonl"), rows)
    fields = {"field_prompt": "prompt", "field_completion": "completion", "field_label": "label"}
    kto = {
        "rl": "kto",
        "rl_beta": 0.1,
        "remove_unused_columns": False,
        "datasets": [
            {"path": "kto.jsonl", "type": {**fields, "prompt_format": "{prompt}", "completion_format": " {completion}"}}
        ],
    }
    axolotl_train(workspace.config(**KEYS, **kto, disperse_cluster=0))
    expected = assigned(rows, 0)
    assert len(seen[0]) == len(expected) > 2
    assert {row["prompt"] for row in found(rows, seen[0], "prompt")} == {row["prompt"] for row in expected}
    assert workspace.manifest()["disperse"]["rows"] == len(expected)


def test_preference_data_of_one_cluster_after_preprocessing_another(
    workspace: Workspace, axolotl_train: Train, axolotl_preprocess: Train, seen: list[list[str]]
) -> None:
    """Axolotl's cache knows the paths of preference data only, as it does for instructions."""
    axolotl_preprocess(workspace.config("0.yaml", dpo=True, **KEYS, disperse_cluster=0))
    axolotl_train(workspace.config("1.yaml", dpo=True, **KEYS, disperse_cluster=1))
    expected = assigned(preference_rows(16), 1)
    assert found(preference_rows(16), seen[0], "prompt") == expected
    assert len(seen[0]) == len(expected) > 1


def test_rows_that_are_added_move_no_other_row(
    workspace: Workspace, axolotl_train: Train, seen: list[list[str]]
) -> None:
    """They may come first and bring a column that the others do not have."""
    rows = sft_rows(24)
    grown = [{**row, "source": "new"} for row in sft_rows(9, start=500)] + rows
    write_jsonl(Path("grown.jsonl"), grown)
    axolotl_train(workspace.config(**KEYS, disperse_cluster=1))
    before = table()
    changes = {"disperse_assignment": "outputs/grown", "datasets": [{"path": "grown.jsonl", "type": "alpaca"}]}
    axolotl_train(workspace.config(**{**KEYS, **changes}, disperse_cluster=1))
    after = pq.read_table("outputs/grown/assignment.parquet").to_pydict()
    assert (after["digest"][9:], after["cluster"][9:]) == (before["digest"], before["cluster"])
    old, new = (found(rows, texts) for texts in seen)
    assert old == new == assigned(rows, 1)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True], ids=["assignment", "streaming"])
def test_two_ranks_started_at_once(workspace: Workspace, streaming: bool) -> None:
    """One makes the assignment and the other waits for it; together they train on the cluster."""
    changes: dict[str, Any] = {"streaming": True, "disperse_assignment": None} if streaming else {}
    config = workspace.config(**{**KEYS, **changes, "max_steps": 4}, disperse_cluster=1, micro_batch_size=1)
    ranks = start_ranks(workspace, config, 2)
    logs = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(log[-2000:] for log in logs)
    section = workspace.manifest()["disperse"]
    assert (section["cluster"], section["clusters"]) == (1, 3)
    rows = [{key: row[key] for key in ("instruction", "input", "output")} for row in sft_rows(24)]
    trained = [line.partition("TRAINED ")[2] for log in logs for line in log.splitlines() if "TRAINED " in line]
    if streaming:
        from untax.disperse.hashing import hash_clusters

        own = hash_clusters(map(row_digest, rows), clusters=3, seed=42)
        expected = [row for row, of in zip(rows, own, strict=True) if of == 1]
    else:
        expected = assigned(rows, 1)
        assert len(list(Path("outputs/disperse/clusters").iterdir())) == 3
        assert sum("MADE" in log for log in logs) == 1
    assert len(trained) == 8
    assert len(found(expected, trained)) == len(found(rows, trained)) == 8
    own = [{line.partition("TRAINED ")[2] for line in log.splitlines() if "TRAINED " in line} for log in logs]
    assert len(own[0]) == len(own[1]) == 4
    assert not own[0] & own[1], "each rank trains on rows of its own"


MAKER = """
import dataclasses, os, sys, time
from pathlib import Path
from corpora import corpus_of
from toys import sft_rows
from untax.data import corpus as reading
from untax.disperse import clusters
from untax.disperse.assignment import obtain
from untax.disperse.settings import DisperseSettings

def begin(files, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f".{files[0].name}.123.part").write_bytes(b"half")
    os.write(1, b"making\\n")  # in one piece, whoever else writes
    time.sleep(600)

clusters.PARALLEL_ROWS, clusters._write = 1, begin
corpus = dataclasses.replace(corpus_of(sft_rows(40)), processes=2)
obtain(corpus, DisperseSettings(clusters=4), Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_one_that_was_killed_while_making_the_assignment_stops_nobody(tmp_path: Path) -> None:
    """Nor do the processes that it had started, which have the lock's file open."""
    path, cache = tmp_path / "d" / "assignment.parquet", tmp_path / "cache"
    tests = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    maker = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(path), str(cache)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": tests},
    )
    assert [maker.stdout.readline() for _ in range(2)] == ["making\n"] * 2
    maker.kill()
    maker.wait()
    started = time.monotonic()
    assignment = obtain(corpus_of(sft_rows(40)), DisperseSettings(clusters=4), path, cache)
    assert time.monotonic() - started < 10
    assert assignment.made
    assert sum(assignment.section["sizes"]) == 40


RANK = """
import sys
from transformers import AutoTokenizer, Trainer
import untax.disperse.assignment as assignment
from axolotl.cli.train import do_cli
from penalty.ranks import share_cpus
from toys import BASE

share_cpus()
tokenizer, step, make = AutoTokenizer.from_pretrained(BASE), Trainer.training_step, assignment._make

def remember(self, model, inputs, *args, **kwargs):
    for ids in inputs["input_ids"]:
        print("TRAINED", tokenizer.decode(ids).replace("\\n", " "), flush=True)
    return step(self, model, inputs, *args, **kwargs)

def made(*args):
    print("MADE", flush=True)
    return make(*args)

Trainer.training_step, assignment._make = remember, made
config, sys.argv = sys.argv[1], ["axolotl"]
do_cli(config=config)
"""


def start_ranks(workspace: Workspace, config: Path, count: int) -> list[subprocess.Popen[str]]:
    """What ``torchrun`` or ``accelerate launch`` start, with gloo on the CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(config)],
            cwd=workspace.folder,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
