"""What the READMEs say that trainings need, against sums made another way."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from untax.recipes.cost.hardware import GPUS
from untax.recipes.cost.time import UTILISATION
from untax.recipes.graph import Layout
from untax.recipes.plan import plan
from untax.recipes.presets import CATALOGUE, preset
from untax.recipes.presets.estimates import SHOWN_GPUS, Costs, costs

REPOSITORY = Path(__file__).parents[3]
PLANS = {name: plan(preset(name), layout=Layout(name)) for name in ("dtm-llama2-7b-tulu2", "paft-mistral-7b-zephyr")}


@pytest.fixture(scope="module")
def tulu() -> Costs:
    return costs(CATALOGUE["dtm-llama2-7b-tulu2"], PLANS["dtm-llama2-7b-tulu2"])


@pytest.fixture(scope="module")
def zephyr() -> Costs:
    return costs(CATALOGUE["paft-mistral-7b-zephyr"], PLANS["paft-mistral-7b-zephyr"])


def of(cost: Costs, name: str):
    (found,) = [estimate for estimate in cost.estimates if name in estimate.names]
    return found


def test_every_training_is_estimated_once(tulu: Costs, zephyr: Costs):
    for cost in (tulu, zephyr):
        trainings = [node.name for node in cost.plan.nodes if node.kind == "train"]
        assert sorted(name for estimate in cost.estimates for name in estimate.names) == sorted(trainings)
        assert cost.trainings == len(trainings)


def test_clusters_together_see_what_vanilla_sees(tulu: Costs):
    """Disperse-Then-Merge, section 1: no additional training."""
    cluster, vanilla = of(tulu, "cluster-0"), of(tulu, "sft")
    assert len(cluster.names) == 4
    assert 4 * cluster.tokens == pytest.approx(vanilla.tokens, rel=1e-5)
    assert 4 * cluster.hours[0] == pytest.approx(vanilla.hours[0], rel=1e-5)
    assert cluster.memory == vanilla.memory


def test_replay_adds_a_full_text_for_each_row(tulu: Costs):
    replay, vanilla = of(tulu, "sft-replay"), of(tulu, "sft")
    assert replay.rows == 2 * vanilla.rows == 2 * 326_154
    assert replay.tokens - vanilla.tokens == pytest.approx(3 * 326_154 * 1024, rel=1e-5)


def test_hours_are_what_seven_billion_weights_cost(tulu: Costs):
    """By hand: LoRA with checkpointing is three passes of 2 operations a weight and token, and some for attention."""
    vanilla = of(tulu, "sft")
    weights = 6_738_415_616 - 32_000 * 4096  # a token is looked up in the embedding, and multiplied by all else
    a100 = next(gpu for gpu in GPUS if gpu.name == "A100")
    least = 3 * 2 * weights * vanilla.tokens / (a100.flops * UTILISATION) / 3600
    assert SHOWN_GPUS[0] == a100
    assert least < vanilla.hours[0] < 1.15 * least


def test_memory_is_more_than_the_bases_and_fits_the_gpus(tulu: Costs, zephyr: Costs):
    assert 2 * 6_738_415_616 < tulu.memory < 24e9  # DTM's V100s have 32 GB
    assert 2 * 7_241_732_096 < zephyr.memory < 80e9
    assert of(zephyr, "dpo").memory == of(zephyr, "dpo-sequential").memory


def test_pairs_are_trained_on_in_both_answers(zephyr: Costs):
    pairs = CATALOGUE["paft-mistral-7b-zephyr"].preference
    assert pairs is not None
    assert of(zephyr, "dpo").tokens == pytest.approx(61_135 * pairs.tokens, rel=1e-6)


def test_readmes_totals_are_the_sums_of_their_rows():
    for name in CATALOGUE:
        text = (REPOSITORY / "recipes" / name / "README.md").read_text()
        rows = re.findall(r"^\| `.*\| ([^|]+) \| ([^|]+) \|$", text, flags=re.MULTILINE)
        (total,) = re.findall(
            r"^\| \*\*all\*\* .*\| \*\*([\d.,]+)\*\* \| \*\*([\d.,]+)\*\* \|$", text, flags=re.MULTILINE
        )
        for column in range(2):
            summed = sum(_product(row[column]) for row in rows)
            assert float(total[column].replace(",", "")) == pytest.approx(summed, rel=0.15, abs=0.4), name


def _product(cell: str) -> float:
    """`4 x 9.7` as a number."""
    times, _, hours = cell.rpartition(" x ")
    return float(times or 1) * float(hours.replace(",", ""))


def test_the_index_has_every_preset():
    text = (REPOSITORY / "recipes/README.md").read_text()
    assert re.findall(r"^\| \[(\S+)\]\(\1/README\.md\)", text, flags=re.MULTILINE) == list(CATALOGUE)
