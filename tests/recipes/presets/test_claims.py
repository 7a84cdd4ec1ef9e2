"""What the READMEs say can be changed in a recipe, changed."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from untax.recipes.presets import PRESETS
from untax.recipes.spec import check_spec
from untax.recipes.write import write_run_folder


def test_fisher_of_table_4_with_a_file_of_rows(tmp_path: Path):
    content = deepcopy(PRESETS["dtm-llama2-7b-tulu2"])
    content["arms"] = {"dtm": {**content["arms"]["dtm"], "statistics": "./rows.jsonl"}}
    content["arms"]["dtm"]["merge"].append("fisher")
    plan = write_run_folder(check_spec(content, where="test"), tmp_path).plan
    weighed = [node for node in plan.nodes if node.kind == "fisher"]
    assert len(weighed) == 4
    assert all("./rows.jsonl" in " ".join(node.command) for node in weighed)


def test_qlora_by_two_keys(tmp_path: Path, axolotl_validated: Any):
    content = {**PRESETS["paft-mistral-7b-zephyr"], "axolotl": {"load_in_4bit": True, "adapter": "qlora"}}
    write_run_folder(check_spec(content, where="test"), tmp_path)
    for name in ("sft-sparse", "dpo"):
        validated = axolotl_validated(tmp_path / f"recipes/{name}.yaml")
        assert (validated.adapter, validated.load_in_4bit) == ("qlora", True)


def test_a_share_of_the_rows_for_a_point_of_figure_10(tmp_path: Path, monkeypatch: Any):
    from axolotl.utils.data.shared import load_dataset_with_config
    from axolotl.utils.dict import DictDefault

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"instruction": str(n)}) + "\n" for n in range(50)))
    monkeypatch.chdir(tmp_path)
    entry = DictDefault({**PRESETS["dtm-tinyllama-1.1b-tulu2"]["sft"][0], "path": "rows.jsonl", "split": "train[:10%]"})
    rows = load_dataset_with_config(entry, False)
    assert [row["instruction"] for row in rows] == ["0", "1", "2", "3", "4"]
