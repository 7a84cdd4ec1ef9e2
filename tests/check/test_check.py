"""Whole run folders: sound ones, and ones with all kinds of faults at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from toys import preference_rows, sft_rows, write_jsonl
from untax.check import check as check_module
from untax.check.check import Report, check_folder
from untax.check.gpus import VisibleGpu
from untax.errors import UntaxError

Make = Callable[..., Path]


def edit(file: Path, **changes: Any) -> None:
    keys = yaml.safe_load(file.read_text()) | changes
    file.write_text(yaml.safe_dump({key: value for key, value in keys.items() if value is not None}))


def texts(report: Report, state: str = "fail") -> str:
    return "\n".join(f"{found.where}: {found.text}" for found in report.findings if found.state == state)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_sound_folder(run_folder: Make) -> None:
    folder = run_folder()
    before = contents(folder)
    report = check_folder(folder, offline=True)
    assert not report.failed, texts(report)
    assert contents(folder) == before
    found = {training.name: training for training in report.trainings}
    assert set(found) == {"cluster-0", "cluster-1", "sft-sparse", "dpo"}
    # 24 rows, two at a time, two batches to a step, two epochs; a cluster has half of them.
    assert (found["sft-sparse"].steps, found["cluster-0"].steps, found["dpo"].steps) == (12, 6, 8)
    assert found["sft-sparse"].warmup == 2
    sparse, cluster = found["sft-sparse"].lengths, found["cluster-0"].lengths
    assert sparse is not None
    assert cluster is not None
    assert (sparse.rows, sparse.looked_at, cluster.rows) == (24, 24, 12)
    assert sparse.tokens == 2 * cluster.tokens
    assert report.disk is not None
    # Two merges of the whole base in the recipe's bfloat16, and DPO's copy of it in float32.
    assert report.disk.merged == 2 * 2 * 260_032
    assert report.disk.base_copies == 4 * 260_032
    assert [node for node, _ in report.due][:1] == ["disperse"]
    assert len(report.due) == report.nodes
    assert report.edited == []


def test_all_faults_at_once(run_folder: Make) -> None:
    pairs = [{**row, "rejected": row["chosen"]} for row in preference_rows(4)] + preference_rows(4)
    rows = [*sft_rows(6), {"instruction": "Go on. " * 200, "input": "", "output": "Yes."}]
    folder = run_folder(sft=rows, preference=pairs)
    write_jsonl(folder / "odd.jsonl", [{"question": "a", "reply": "b"}])
    recipes = folder / "recipes"
    odd = [{"path": "sft.jsonl", "type": "alpaca"}, {"path": "odd.jsonl", "type": "alpaca"}]
    edit(recipes / "cluster-0.yaml", datasets=[{"path": "gone.jsonl", "type": "alpaca"}])
    edit(recipes / "cluster-1.yaml", datasets=odd, tokenizer_config="./nowhere")
    edit(recipes / "sft-sparse.yaml", warmup_steps=50, chat_template="jinja", chat_template_jinja="template.jinja")
    edit(recipes / "dpo.yaml", output_dir="outputs/elsewhere")
    report = check_folder(folder, offline=True)
    failures, notes = texts(report), texts(report, "note")
    assert report.failed
    assert "recipes/cluster-0.yaml: datasets, entry 0, path: there is no gone.jsonl" in failures
    assert "recipes/cluster-1.yaml: tokenizer_config: there is no ./nowhere" in failures
    assert "recipes/cluster-1.yaml: datasets, entry 1: odd.jsonl has no column instruction, output" in failures
    assert "recipes/sft-sparse.yaml: chat_template_jinja: there is no template.jinja" in failures
    assert "4 of 8 rows (0, 1, 2, 3) chose what they rejected" in notes
    assert "14.3% of the rows are longer than 256 tokens and are left out" in notes
    assert "the learning rate rises for 50 of about" in notes
    assert sorted(report.edited) == [f"recipes/{name}.yaml" for name in ("cluster-0", "cluster-1", "dpo", "sft-sparse")]


def test_what_a_run_would_refuse_fails(run_folder: Make) -> None:
    folder = run_folder()
    edit(folder / "recipes" / "dpo.yaml", output_dir="outputs/elsewhere")
    assert "output_dir is outputs/elsewhere" in texts(check_folder(folder, offline=True))


def test_missing_and_broken_yamls(run_folder: Make) -> None:
    folder = run_folder()
    (folder / "recipes" / "dpo.yaml").unlink()
    (folder / "recipes" / "sft-sparse.yaml").write_text("a: [")
    failures = texts(check_folder(folder, offline=True))
    assert "recipes/dpo.yaml: A YAML of this run folder is missing" in failures
    assert "recipes/sft-sparse.yaml: This is no YAML" in failures


def test_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UntaxError, match="no recipe"):
        check_folder(tmp_path)


def test_hub_names_offline(run_folder: Make) -> None:
    folder = run_folder(arms={"vanilla": {}}, base="nobody/no-such-base", sft=None)
    for file in (folder / "recipes").iterdir():
        edit(file, datasets=[{"path": "nobody/no-such-data", "type": "alpaca"}])
    report = check_folder(folder, offline=True)
    unknown = texts(report, "unknown")
    assert not report.failed, texts(report)
    assert "model nobody/no-such-base: not checked (offline)" in unknown
    assert "dataset nobody/no-such-data: not checked (offline)" in unknown
    assert "memory and hours are not estimated" in unknown
    assert report.trainings[0].memory is None


def test_what_the_run_makes_is_not_missing(run_folder: Make) -> None:
    folder = run_folder(arms={"sequential": {}, "replay": {}}, replay=[{"path": "texts.jsonl", "field": "text"}])
    write_jsonl(folder / "texts.jsonl", [{"text": "A cat sat."}])
    report = check_folder(folder, offline=True)
    assert not report.failed, texts(report)
    assert "replay.jsonl is not made yet" in texts(report, "unknown")
    found = {training.name: training for training in report.trainings}
    assert found["dpo-sequential"].lengths is not None  # of the recipe's own base
    assert found["dpo-sequential"].memory is not None
    assert found["sft-replay"].lengths is None


def test_raise_and_cut(run_folder: Make) -> None:
    rows = [{"instruction": "Go on. " * 200, "input": "", "output": "Yes."}] * 3
    folder = run_folder(sft=rows, arms={"vanilla": {}})
    edit(folder / "recipes" / "sft.yaml", excess_length_strategy="raise")
    assert "which stops the training" in texts(check_folder(folder, offline=True))
    edit(folder / "recipes" / "sft.yaml", excess_length_strategy="truncate")
    assert "100.0% of the rows have no token to train on within 256" in texts(check_folder(folder, offline=True))
    edit(folder / "recipes" / "sft.yaml", excess_length_strategy="drop")
    assert "no row is left to train on" in texts(check_folder(folder, offline=True))


def test_chat_templates(run_folder: Make) -> None:
    chats = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}] * 4
    entries = [{"path": "sft.jsonl", "type": "chat_template"}]
    folder = run_folder(sft=chats, arms={"vanilla": {}})
    edit(folder / "recipes" / "sft.yaml", datasets=entries)
    [finding] = [found for found in check_folder(folder, offline=True).findings if found.state == "fail"]
    assert finding.text.startswith("The base has no chat template")
    assert "--chat-template zephyr" in finding.fix
    edit(folder / "recipes" / "sft.yaml", chat_template="chatml")
    report = check_folder(folder, offline=True)
    assert not report.failed, texts(report)
    assert "chat template: chatml" in texts(report, "ok")
    edit(folder / "recipes" / "sft.yaml", chat_template="no-such-template")
    assert "no-such-template" in texts(check_folder(folder, offline=True))


def test_small_gpu(run_folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_folder(device="cuda", arms={"vanilla": {}})
    monkeypatch.setattr(check_module, "visible_gpus", lambda: [VisibleGpu("NVIDIA A100-SXM4-80GB", 10**9)])
    report = check_folder(folder, offline=True)
    assert "GPU memory are needed, and NVIDIA A100-SXM4-80GB has 1" in texts(report, "note")
    assert list(report.trainings[0].hours or {}) == ["A100"]


def test_full_disk(run_folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    folder = run_folder(arms={"vanilla": {}})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    assert "still to be written" in texts(check_folder(folder, offline=True))


def test_one_entry_is_read_once(run_folder: Make) -> None:
    said: list[str] = []
    check_folder(run_folder(), offline=True, say=said.append)
    assert [line for line in said if line == "reading sft.jsonl"] == ["reading sft.jsonl"]


def test_few_rows_of_many(run_folder: Make) -> None:
    report = check_folder(run_folder(sft=sft_rows(100), arms={"vanilla": {}}), offline=True, rows=20)
    lengths = report.trainings[0].lengths
    assert lengths is not None
    assert (lengths.rows, lengths.looked_at) == (100, 20)


def test_manifests_of_what_is_done_shorten_the_list(run_folder: Make) -> None:
    """A folder whose adapter is there, unproven, is still due; the reason says so."""
    folder = run_folder(arms={"vanilla": {}})
    made = folder / "outputs" / "sft"
    made.mkdir(parents=True)
    (made / "untax.json").write_text(json.dumps({"what": "adapter", "outputs": {"gone.safetensors": "0"}}))
    report = check_folder(folder, offline=True)
    assert dict(report.due)["sft"] == "outputs/sft: gone.safetensors was changed or removed"
