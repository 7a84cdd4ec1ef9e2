"""The papers' settings, against the papers' own numbers, and the origin of every value of a preset."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from untax.recipes import papers
from untax.recipes.papers import origin, values
from untax.recipes.preference import METHODS
from untax.recipes.presets import PRESETS
from untax.recipes.presets.paft import ORPO

REPOSITORY = Path(__file__).parents[2]
TRAININGS = [path for path in sorted((REPOSITORY / "recipes").rglob("*.yaml")) if path.name != "untax.yaml"]
ORIGIN = re.compile(r"(?:DTM|PAFT|Zephyr recipe|TRL's|KTO paper|SimPO paper|SimPO has|Axolotl does)\b.*|ours: \S.*")

# Disperse-Then-Merge, table 10: all but the learning rate are the same for its bases.
TABLE_10 = {
    "optimizer": "adamw_torch",
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "learning_rate": 3e-4,
    "sequence_len": 1024,
    "warmup_steps": 100,
    "lr_scheduler": "cosine",
    "weight_decay": 0,
    "lora_r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "lora_target_modules": ["gate_proj", "up_proj", "down_proj"],
    "num_epochs": 3,
}
# alignment-handbook, recipes/zephyr-7b-beta: sft and dpo with config_qlora.
ZEPHYR_SFT = {
    "lora_r": 16,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "learning_rate": 2e-4,
    "lr_scheduler": "cosine",
    "warmup_ratio": 0.1,
    "sequence_len": 2048,
    "num_epochs": 1,
}
ZEPHYR_DPO = {
    "lora_r": 128,
    "lora_alpha": 128,
    "lora_dropout": 0.05,
    "learning_rate": 5e-6,
    "rl_beta": 0.01,
    "lr_scheduler": "cosine",
    "warmup_ratio": 0.1,
    "sequence_len": 1024,
    "num_epochs": 1,
}


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (papers.dtm_sft(), TABLE_10),
        (papers.dtm_sft(5e-5), {**TABLE_10, "learning_rate": 5e-5}),
        (papers.paft_sft(), ZEPHYR_SFT),
        (papers.paft_preference(), ZEPHYR_DPO),
    ],
)
def test_values_are_the_papers(settings: papers.Settings, wanted: dict[str, Any]):
    assert {key: value for key, value in values(settings).items() if key in wanted} == wanted


def test_the_batch_is_table_10s():
    settings = values(papers.dtm_sft())
    assert settings["micro_batch_size"] * settings["gradient_accumulation_steps"] == 16


def test_orpo_is_dpos_recipe_with_orpos_own_keys():
    orpo, dpo = values(ORPO), values(papers.paft_preference())
    changed = {key for key in {*orpo, *dpo} if orpo.get(key) != dpo.get(key)}
    assert changed == {"rl", "rl_beta", "orpo_alpha", "learning_rate"}
    assert (orpo["rl"], orpo["orpo_alpha"], "rl_beta" in orpo) == ("orpo", 0.1, False)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_setting_says_where_it_comes_from(device: str):
    groups = [
        papers.dtm_sft(),
        papers.paft_sft(),
        papers.paft_preference(),
        *(method.defaults for method in METHODS.values()),
        ORPO,
        papers.chat("</s>"),
        papers.current_sft(),
        papers.current_preference(),
        papers.small_sft(),
        papers.small_preference(),
        papers.device_settings(device),
    ]
    unsaid = [(key, one.origin) for group in groups for key, one in group.items() if not ORIGIN.fullmatch(one.origin)]
    assert unsaid == []


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_of_a_preset_has_an_origin(name: str):
    content = PRESETS[name]
    for kind, keys in content["training"].items():
        known = {
            key: origin(key, value, settings=content["settings"], kind=kind, device="cuda")
            for key, value in keys.items()
        }
        assert [key for key, said in known.items() if not ORIGIN.fullmatch(said)] == []


def test_the_origin_stands_beside_each_value_of_the_yamls():
    """Of the keys of the recipe and of the device; the plan's own keys and what an arm asks for need none."""
    own = {"base_model", "datasets", "plugins", "output_dir", "dataset_prepared_path", "seed", "logging_steps"}
    bare = []
    for path in TRAININGS:
        for line in path.read_text().splitlines():
            key = re.match(r"([a-z]\w*):", line)
            planned = key is None or key[1] in own or key[1].startswith(("disperse_", "delta_"))
            soup = path.name.startswith("soup-") and line.startswith("learning_rate:")
            if not planned and not soup and not re.search(rf"  # {ORIGIN.pattern}$", line):
                bare.append(f"{path.parent.name}/{path.name}: {line}")
    assert bare == []


def test_another_value_has_no_origin():
    ask = {"settings": "dtm", "kind": "sft", "device": "cuda"}
    assert origin("learning_rate", 3e-4, **ask) == "DTM table 10"
    assert origin("learning_rate", 1e-4, **ask) == ""
    assert origin("learning_rate", 3e-4, **{**ask, "settings": "paft"}) == ""
    assert origin("learning_rate", 3e-4, **{**ask, "settings": None}) == ""
    assert origin("no_such_key", 1, **ask) == ""


def test_a_yaml_reads_as_the_values_do():
    """Comments change no value: what is written is what the preset says."""
    for path in TRAININGS:
        content = PRESETS[path.parent.name]
        written = yaml.safe_load(path.read_text())
        kind = "preference" if "rl" in written else "sft"
        keys = {key: value for key, value in content["training"][kind].items() if not path.name.startswith("soup-")}
        assert {key: written[key] for key in keys} == keys, path
